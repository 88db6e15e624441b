"""What a run was made from: in its configuration, and online as artifacts that it has used."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import wandb

from unified_tracker._errors import TransientError
from unified_tracker._reference import parse
from unified_tracker.backends import _wandb_values as values
from unified_tracker.backends._wandb_errors import clean, suppress_missing
from unified_tracker.backends._wandb_receipts import TIMEOUT_S
from unified_tracker.backends._wandb_versions import WAIT_S, Draft, Reference, artifact_of
from unified_tracker.records import Input

KEY: Final = "unified_tracker/inputs"
MODEL_ZOO: Final = re.compile(r"(?:detectron2://|https://dl\.fbaipublicfiles\.com/detectron2/)")
REFERENCE_TYPE: Final = "model"
TEXT: Final = ("name", "version", "digest", "backend", "uri", "run")


class RunInputs:
    """The inputs of one run, as far as this process and those before it were told.

    Attributes:
        plain: As they stand in the configuration, in the order of use: one for each role and reference.
        notes: Sentences for the user.
    """

    def __init__(self, run: Any, remembered: Sequence[dict[str, Any]], *, offline: bool) -> None:
        self.plain = list(remembered)
        self.notes: list[str] = []
        self._run, self._offline = run, offline
        self._api: Any = None
        self._used: dict[str, Any] = {}  # what the server knows that the run has used, by what it is
        self._using: dict[str, _Use] = {}

    def config(self) -> dict[str, Any]:
        """What stands in the run's configuration."""
        return {KEY: values.plain(self.plain)} if self.plain else {}

    def inputs(self) -> list[Input]:
        """As records."""
        return [found for item in self.plain if (found := read_input(item)) is not None]

    def add(self, record: Input) -> None:
        """Take one that is new, or says more about one that is there."""
        item = _plain(record)
        for known in self.plain:
            if (known.get("role"), known.get("reference")) == (item.get("role"), item.get("reference")):
                merged = {key: {**known.get(key, {}), **item.get(key, {})} for key in ("metadata", "metrics")}
                known.update({**item, **{key: value for key, value in merged.items() if value}, "ts": known["ts"]})
                return
        self.plain.append(item)

    def use(self, record: Input) -> None:
        """Online: let the server know that the run has used it, and what an evaluation found of it.

        A second time nothing happens. What the server does not have stays in the configuration, and a note says so.

        Raises:
            TransientError: The server does not answer, or has not committed the artifact yet.
        """
        if self._offline:
            return
        if record.backend == "wandb":
            artifact = self._used.get(record.uri) or self._version(record)
            if artifact is None:
                return
            if record.uri not in self._used:
                self._run.use_artifact(artifact)
                self._used[record.uri] = artifact
            if record.metrics:
                _attach(artifact, record)
        elif not record.backend and record.type == REFERENCE_TYPE:
            self._use_external(record)

    # ---- versions that the server has ----------------------------------------------------------------------------

    def _version(self, record: Input) -> Any:
        """The version that an input means; None if the server has none with this content."""
        reference = parse(record.uri)
        if reference is not None:
            place = reference.project or self._run.project
            path = f"{place if '/' in place else f'{self._run.entity}/{place}'}/{reference.name}"
            for artifact in self._candidates(f"{path}:{reference.alias}", path, record.type):
                # Of a data set the record has the digest of its content, which is the same on every backend.
                if record.digest in {"", artifact.digest, artifact.metadata.get("digest")}:
                    return artifact
        self._tell(
            f"{record.reference} is no version that {self._run.entity}'s server has; "
            "the run's configuration says that it was used, W&B's graph does not"
        )
        return None

    def _candidates(self, exactly: str, collection: str, kind: str) -> Iterator[Any]:
        """The version of this number; then, for what was recorded offline or elsewhere, those of other numbers."""
        if self._api is None:
            defaults = {"entity": self._run.entity, "project": self._run.project}
            self._api = wandb.Api(overrides=defaults, timeout=TIMEOUT_S)
        with suppress_missing():
            yield self._api.artifact(exactly)
        with suppress_missing():
            yield from self._api.artifacts(values.artifact_types(kind), collection)

    # ---- what no backend holds -----------------------------------------------------------------------------------

    def _use_external(self, record: Input) -> None:
        """A model from a URL or a file, as an artifact with a reference to it: its bytes are not W&B's to keep.

        The digest of the reference is the SHA-256 of the file: the same weights are one version, other ones under the
        same name another. An artifact without files would be one version for ever, whatever its metadata says.
        """
        draft = _external(record)
        key = f"{draft.name} {[reference.digest for reference in draft.references.values()]}"
        if key in self._used:
            return
        if key not in self._using:
            self._using[key] = _Use(self._run, artifact_of(draft))
            self._using[key].start()
        use = self._using[key]
        use.join(WAIT_S)
        if use.is_alive():
            raise TransientError(f"W&B is still taking artifact {draft.name!r}")
        del self._using[key]
        if isinstance(use.error, ValueError):
            raise TransientError(clean(f"artifact {draft.name!r}: {use.error}")) from use.error
        if use.error is not None:
            raise use.error
        self._used[key] = use.artifact

    def _tell(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


class _Use(threading.Thread):
    """Logs an artifact as used. W&B's client waits for the server without a limit; this thread can be left waiting."""

    def __init__(self, run: Any, artifact: Any) -> None:
        super().__init__(name=f"use of {artifact.name}", daemon=True)
        self._run, self.artifact = run, artifact
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._run.use_artifact(self.artifact)
        except Exception as error:  # noqa: BLE001 -- raised in the thread that asks
            self.error = error


def read_input(item: Any) -> Input | None:
    """An input from a run's configuration; None for anything else, which strangers may have put there."""
    if not isinstance(item, Mapping) or not item.get("reference"):
        return None
    item = values.unwrapped(item)
    metadata, step = item.get("metadata"), item.get("step")
    name, version, digest, backend, uri, run = (str(item.get(key) or "") for key in TEXT)
    return Input(
        int(item["ts"]) if isinstance(item.get("ts"), (int, float)) else 0,
        str(item.get("role") or ""),
        str(item.get("type") or ""),
        str(item["reference"]),
        name,
        version,
        digest,
        backend,
        uri,
        run,
        metadata=dict(metadata) if isinstance(metadata, Mapping) else {},
        metrics=dict(values.finite(item.get("metrics") or {})),
        step=step if isinstance(step, int) else None,
    )


def _plain(record: Input) -> dict[str, Any]:
    """An input as a configuration holds it: what is known of it, and nothing that is empty."""
    item = {key: value for key, value in msgspec.structs.asdict(record).items() if key != "file"}
    item["metadata"], item["metrics"] = values.json_like(record.metadata), values.finite(record.metrics)
    if record.file is not None:
        item["metadata"].setdefault("size", record.file.size)
    return {key: value for key, value in item.items() if value not in ("", None, {})}


def _external(record: Input) -> Draft:
    reference = record.reference
    prefix = MODEL_ZOO.match(reference)
    if prefix is not None:
        name = f"detectron2-model-zoo-{reference[prefix.end() :]}"
    else:
        name = reference if "://" in reference else record.name or Path(reference).name
    url = reference
    if "://" not in reference:
        url = Path(record.file.staged if record.file is not None else reference).absolute().as_uri()
    size = record.file.size if record.file is not None else 0
    metadata = {**values.json_like(record.metadata), "original_url": reference}
    if record.digest:
        metadata["sha256"] = record.digest
    # As the W&B demo names them; what else W&B does not take is replaced when the artifact is made.
    name = re.sub("[:/]", "_", name)
    held = {record.name or name: Reference(url, record.digest or url, size)}
    return Draft(name, REFERENCE_TYPE, {}, held, metadata)


def _attach(artifact: Any, record: Input) -> None:
    """What an evaluation has found of a version stands beside what the training had found of it."""
    found = values.finite(record.metrics)
    held = artifact.metadata.get("metrics", {})
    key = "metrics" if isinstance(held, dict) else "unified_tracker/metrics"
    before = artifact.metadata.get(key) or {}
    if {**before, **found} != before:
        artifact.metadata[key] = {**before, **found}
        artifact.save()
