"""References in a configuration: fetched, and found under their URIs, before anything is built from it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathHandler, PathManager

from unified_tracker import TrackerError
from unified_tracker._access import Access
from unified_tracker._fetching import Fetched, Options
from unified_tracker._origins import METADATA
from unified_tracker._reference import SCHEMES, parse
from unified_tracker.training import RunSettings
from unified_tracker_detectron2._config import evaluated_datasets, hook_arguments, initial_weights, training_datasets

ANNOTATIONS: Final = "annotations.json"
IMAGES: Final = "images"
NUMBERED: Final = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")  # keys are numbers
NAMED: Final = (
    "thing_classes",
    "thing_colors",
    "stuff_classes",
    "stuff_colors",
    "keypoint_names",
    "keypoint_flip_map",
    "keypoint_connection_rules",
)


class ArtifactHandler(PathHandler):
    """Gives Detectron2 files of artifacts by their references.

    A reference with a path behind the alias is that file. Without one it is the artifact's one file of weights: that is
    what stands in `MODEL.WEIGHTS`.

    Attributes:
        access: How backends are asked.
        asked: References that something has asked for: a checkpointer that loads weights does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.access = Access()
        self.asked: set[str] = set()

    def _get_supported_prefixes(self) -> list[str]:
        return [f"{scheme}://" if scheme.endswith("-artifact") else f"{scheme}:/" for scheme in SCHEMES]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(self._place(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        self._check_kwargs(kwargs)
        if mode not in {"r", "rb", "rt"}:
            raise ValueError(f"{path} is an artifact, which is never written to: mode {mode!r}")
        return self._place(path).open(mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            return self._place(path).exists()
        except TrackerError:
            return False

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path) and self._place(path).is_file()

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path) and self._place(path).is_dir()

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        reference = parse(path)
        whole = reference is None or not reference.path
        return sorted(os.listdir(self.access.fetch(path).folder if whole else self._place(path)))

    def _place(self, path: str) -> Path:
        self.asked.add(str(parse(path)))
        return self.access.weights(path)


_handler: ArtifactHandler | None = None


def prepare(cfg: Any, *, options: Options | None = None) -> None:
    """Fetch what a configuration names by reference, so that everything that is built from it finds it.

    * Data sets: `DATASETS.TRAIN` and `TEST`, in a LazyConfig `dataloader.train.dataset.names` and `.test.`, may name an
      artifact with `annotations.json` and `images/`. It is registered under the reference as its name, with the names
      and ids of its classes.
    * Weights: `MODEL.WEIGHTS`, or `train.init_checkpoint`, may be a reference to an artifact with exactly one file of
      weights, or to a file in an artifact. It is loaded when the checkpointer asks for it.

    Example:
        cfg.merge_from_file("config.yaml")
        prepare(cfg)
        trainer = DefaultTrainer(cfg)

    The configuration is not changed, it may be frozen. Call it in every process: each machine fetches once, and there
    is no collective call. Calling it again is harmless.

    Args:
        cfg: `CfgNode`, or the `DictConfig` of a LazyConfig.
        options: Backend name to its options, as in `unified_tracker.start_run`; what `cfg.TRACKER` sets goes before.

    Blocking: asks the backend in a helper process and downloads what this machine does not have.

    Raises:
        ConfigurationError: A reference that is none, or whose backend cannot be used.
        TrackerError: The backend does not answer, or has nothing that fits. Nothing has been built by then.
    """
    handler = _registered_handler()
    names = dict.fromkeys([*training_datasets(cfg), *evaluated_datasets(cfg)])
    datasets, weights = [name for name in names if parse(name) is not None], initial_weights(cfg)
    tracked = parse(weights) is not None
    handler.access = _access(cfg, options or {}) if datasets or tracked else Access(others=options or {})
    for name in datasets:
        _register(name, handler.access.fetch(name))
    if tracked:
        handler.access.weights(weights)


def was_loaded(text: str) -> bool:
    """Whether weights that a reference names were asked for in this process."""
    reference = parse(text)
    return reference is not None and _handler is not None and str(reference) in _handler.asked


def _registered_handler() -> ArtifactHandler:
    global _handler  # Detectron2 has one `PathManager` a process
    if _handler is None:
        _handler = ArtifactHandler()
        PathManager.register_handler(_handler, allow_override=True)
    return _handler


def _register(name: str, found: Fetched) -> None:
    """A data set of the catalog, as `register_coco_instances` makes it."""
    if name in DatasetCatalog.list():
        return
    annotations = found.folder / ANNOTATIONS
    if not annotations.is_file():
        held = ", ".join(sorted(found.version.files)[:10]) or "nothing"
        raise TrackerError(f"{name} is no data set: it must hold {ANNOTATIONS} and {IMAGES}/; it holds {held}")
    metadata = _metadata(found)
    ids = metadata.get(NUMBERED[0]) if "thing_classes" in metadata else None
    images = str(found.folder / IMAGES)
    DatasetCatalog.register(name, functools.partial(_load, str(annotations), images, name, ids))
    MetadataCatalog.get(name).set(
        json_file=str(annotations), image_root=images, evaluator_type="coco", **(metadata if ids else {})
    )


def _load(annotations: str, images: str, name: str, ids: Mapping[int, int] | None) -> list[dict[str, Any]]:
    """The records. With ids of classes that the artifact names, they hold, whatever order they stand in."""
    if ids is None:
        return list(load_coco_json(annotations, images, name))
    records: list[dict[str, Any]] = load_coco_json(annotations, images)
    for record in records:
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if category not in ids:
                raise KeyError(f"{name}: an annotation has category_id {category}, which {METADATA} does not name")
            annotation["category_id"] = ids[category]
    return records


def _metadata(found: Fetched) -> dict[str, Any]:
    """What the artifact says for `MetadataCatalog`; JSON has made texts of the ids."""
    try:
        given = json.loads((found.folder / METADATA).read_bytes())
        metadata = {key: given[key] for key in NAMED if key in given}
        for key in NUMBERED:
            if key in given:
                metadata[key] = {int(number): int(label) for number, label in given[key].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise TrackerError(f"{found.version.reference}: {METADATA} cannot be understood: {error}") from error
    return metadata


def _access(cfg: Any, options: Options) -> Access:
    """As the hook will ask that is made from the same configuration."""
    if not isinstance(cfg, CfgNode):
        return Access(others=options)
    given = hook_arguments(cfg)
    merged = _merged(options, given.get("options", {}))
    settings = RunSettings.resolve(given.get("tracker"), project=given.get("project"), options=merged)
    return Access.of(settings, merged)


def _merged(*sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for source in sources:
        for backend, values in source.items():
            merged.setdefault(backend, {}).update(values)
    return merged
