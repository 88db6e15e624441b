"""Creating a version: from a COCO file and a folder of images to an artifact in the backends."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from unified_tracker._cache import REFERENCES, Referenced
from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._ledger import Refused, look_up
from unified_tracker._reference import ArtifactReference
from unified_tracker._rundir import RunDirectory
from unified_tracker._settings import TrackerChoice
from unified_tracker._staging import Hold
from unified_tracker._start import RunSettings
from unified_tracker.datasets._card import (
    ANNOTATIONS,
    CARD,
    DETECTRON2,
    PAGE,
    DatasetCard,
    detectron2_metadata,
)
from unified_tracker.datasets._changes import Changes, Content, compare, read_content
from unified_tracker.datasets._coco import Coco, read_coco
from unified_tracker.datasets._flaws import BrokenDatasetError, Flaw, Flaws
from unified_tracker.datasets._pictures import FOLDER, ImageFile, look_at_images
from unified_tracker.datasets._previous import Previous, keep, previous
from unified_tracker.datasets._selection import Selection
from unified_tracker.datasets._statistics import CLASS_COLUMNS

NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,100}")
WAIT_S: Final = 60.0
BYTES_A_S: Final = 1 << 20
MOST_BYTES: Final = 15 << 20  # of one record in the journal, which takes 16 MiB
Images = Literal["link", "copy", "reference"]
Steps = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Begins a step of the work: what is done, and to how many; the function that is given counts one."""
Outcome = Literal["created", "pending", "unchanged", "off"]


class Created(msgspec.Struct, frozen=True):
    """What has become of a data set.

    Attributes:
        outcome: "created"; "pending": recorded, but not every backend holds it yet; "unchanged": the latest version is
            the same; "off": tracking is off, nothing was recorded.
        versions: Backend to version ("v3"), or "" where the backend cannot be asked.
        references: Backend to the reference of that version, as trainings and commands take it.
        card: What the version says about itself.
        changes: Since the version before; None without one.
        flaws: What was left out.
        run_dir: Where it was recorded from; "" if nothing was.
    """

    name: str
    outcome: Outcome
    versions: dict[str, str]
    references: dict[str, str]
    card: DatasetCard
    changes: Changes | None
    flaws: list[Flaw]
    run_dir: str


def _no_steps(what: str, count: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def create_dataset(
    name: str,
    json_file: str | Path,
    image_dir: str | Path,
    *,
    selection: Selection = Selection(),  # noqa: B008 -- immutable
    images: Images = "link",
    strict: bool = False,
    tracker: TrackerChoice = None,
    project: str | None = None,
    aliases: Sequence[str] = (),
    dir: str | Path | None = None,  # noqa: A002 -- as in `start_run`
    options: Mapping[str, Mapping[str, Any]] | None = None,
    steps: Steps = _no_steps,
) -> Created:
    """Record a COCO data set, or a part of one, as the next version of an artifact of type "dataset".

    It is recorded by the run `dataset-<name>`, which goes on with each version. A data set whose content is that of the
    latest version makes no new one.

    Args:
        name: Letters, digits, `_ . -`.
        json_file: COCO instances: images, annotations, categories.
        image_dir: What the file names in it are relative to.
        selection: Which part.
        images: "link" them into the run directory while they are being delivered (no copy, where the file system has
            links; they must not be written over meanwhile, and if they are, that is told); "copy" them there;
            "reference": leave them where they are, with absolute path and hash, and upload none.
        strict: Record nothing if there are flaws. Else what is broken is left out and counted.
        tracker, project, dir, options: As in `start_run`.
        aliases: Names that move to this version; "latest" is implied.
        steps: Shows progress.

    Blocking: reads every image once; then waits for delivery, longer for larger data sets, a minute at the least. What
    is pending then is delivered by the uploader, which lives on.

    Crash: nothing is recorded, or what was recorded is delivered by the next call or by `unified-tracker sync`.

    Raises:
        BrokenDatasetError: There are flaws, and `strict`.
        ConfigurationError: The name or a setting is wrong; another process is writing to this data set.
        TrackerError: The file is no COCO data set, or nothing of it is selected; or a backend has refused what was
            recorded, as it does with an image that was written over meanwhile.
        OSError: It cannot be read, or there is no room.
    """
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a data set: letters, digits, '_', '.' and '-', 1 to 100"
        )
    if images not in {"link", "copy", "reference"}:
        raise ConfigurationError(f"images must be 'link', 'copy' or 'reference', not {images!r}")
    selection.check()
    settings = RunSettings.resolve(tracker, project=project, name=name, dir=dir, options=options, on_error="raise")
    coco, files, flaws = _read(Path(json_file), Path(image_dir), selection, steps)
    if flaws and strict:
        raise BrokenDatasetError(flaws)
    card = DatasetCard.of(name, coco, files, selection)
    run_dir = settings.parent / f"dataset-{name}"
    if not settings.backends:
        return Created(name, "off", {}, {}, card, None, flaws, "")
    if images != "reference" and _record_bytes(files) > MOST_BYTES:
        raise TrackerError(f"{len(files):,} images are too many for one record; use images='reference'")

    def found() -> dict[str, Previous | None]:
        each = settings.backends.items()
        return {backend: previous(backend, own, settings.project, name, run_dir) for backend, own in each}

    with _secrets(settings):
        before = found()
        if not aliases and all(each is not None and each.digest == card.digest for each in before.values()):
            return Created(name, "unchanged", *_versions(before, card), card, None, flaws, "")
        changes = _changes(before.values(), Content(coco, card.files))
        metadata = _metadata(card, selection, images, flaws)
        if changes and not any(each and each.has(card.digest) for each in before.values()):
            metadata["changes"] = changes.counts()
        with tempfile.TemporaryDirectory(prefix="unified-tracker-") as folder:
            with steps("page", 0):
                small = _small_files(Path(folder), card, coco, files, images)
            held = {} if images == "reference" else files
            how: Hold = "copy" if images == "copy" else "shared"
            entries = small, held, how
            known = _refused(settings, run_dir)
            complete = _record(settings, card, entries, tuple(aliases), metadata, _next_step(before.values()), steps)
        for backend, refused in _refused(settings, run_dir).items():
            if new := refused - known[backend]:
                raise TrackerError(f"{backend} has not taken the data set: {'; '.join(each.reason for each in new)}")
        keep(run_dir, coco.encode(), card.encode())
        if not complete:
            return Created(name, "pending", {}, {}, card, changes, flaws, str(run_dir))
        return Created(name, "created", *_versions(found(), card), card, changes, flaws, str(run_dir))


def _read(
    json_file: Path, image_dir: Path, selection: Selection, steps: Steps
) -> tuple[Coco, dict[str, ImageFile], list[Flaw]]:
    flaws = Flaws()
    if not image_dir.is_dir():
        raise TrackerError(f"{image_dir} is not a folder")
    coco = selection.apply(read_coco(json_file, flaws))
    with steps("images", len(coco.images)) as tick:
        coco, files = look_at_images(coco, image_dir, flaws, tick)
    if not files:
        listed = flaws.listed()
        example = next((flaw.examples[0] for flaw in reversed(listed) if flaw.examples), "")
        raise TrackerError(f"no image of the data set can be used; the last kind of flaw: {example}")
    return coco, files, flaws.listed()


def _changes(before: Iterable[Previous | None], after: Content) -> Changes | None:
    """Since the first of the versions before that can be had."""
    for each in before:
        if each is None:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="unified-tracker-") as scratch,
            contextlib.suppress(TrackerError, OSError),
        ):
            folder = each.folder(Path(scratch))
            if folder is not None:
                return compare(read_content(folder), after)
    return None


def _small_files(
    folder: Path, card: DatasetCard, coco: Coco, files: Mapping[str, ImageFile], images: Images
) -> dict[str, Path]:
    """Everything but the images: name in the artifact to where it was written."""
    from unified_tracker.datasets._page import truth_page  # NumPy, pycocotools: for who makes one

    content = {
        ANNOTATIONS: coco.encode(),
        DETECTRON2: detectron2_metadata(coco),
        CARD: card.encode(),
        PAGE: truth_page(card, coco, files),
    }
    if images == "reference":
        there = {
            f"{FOLDER}/{name}": Referenced(str(file.path), file.size, file.sha256)
            for name, file in sorted(files.items())
        }
        content[REFERENCES] = msgspec.json.format(msgspec.json.encode(there), indent=1)
    for name, each in content.items():
        (folder / name).write_bytes(each)
    return {name: folder / name for name in content}


def _metadata(card: DatasetCard, selection: Selection, images: Images, flaws: list[Flaw]) -> dict[str, Any]:
    """Of the version; the field's words first, fewer than a hundred keys."""
    found: dict[str, Any] = {
        "format": {"type": card.format},
        "digest": card.digest,
        "images": card.images,
        "annotations": card.annotations,
        "classes": list(card.classes),
        "sizes": card.sizes,
        "selection": msgspec.to_builtins(selection),
        "by_reference": images == "reference",
    }
    if flaws:
        found["left_out"] = {flaw.kind: flaw.count for flaw in flaws}
    return found


def _record(
    settings: RunSettings,
    card: DatasetCard,
    entries: tuple[Mapping[str, Path], Mapping[str, ImageFile], Hold],
    aliases: tuple[str, ...],
    metadata: dict[str, Any],
    step: int,
    steps: Steps,
) -> bool:
    """Log the version by its run; gives whether every backend holds it.

    Args:
        settings, card: Where, and what.
        entries: Small files by their names in the artifact; images by their file names, and how they are staged.
        aliases, metadata: Of the version.
        step: Of the table: versions stand one behind the other.
        steps: Shows progress.
    """
    small, held, how = entries
    run = settings.open(id=f"dataset-{card.name}", rank=0)
    try:
        run.log_table(f"{card.name}/per_class", CLASS_COLUMNS, card.statistics.class_rows(), step=step)
        with steps("staging", len(held)) as tick:
            run._log_artifact_files(_entries(small, held, tick), card.name, "dataset", how, aliases, metadata)
    except BaseException:
        run.finish("FAILED", timeout_s=0)
        raise
    size = sum(file.size for file in held.values())
    with steps("delivering", 0):
        return run.finish(timeout_s=WAIT_S + size / BYTES_A_S)


def _entries(
    small: Mapping[str, Path], files: Mapping[str, ImageFile], tick: Callable[[], None]
) -> Iterator[tuple[str, Path]]:
    yield from small.items()
    for name, file in files.items():
        if file.changed():
            raise OSError(f"{file.path} was written over while the data set was made")
        yield f"{FOLDER}/{name}", file.path
        tick()


def _refused(settings: RunSettings, run_dir: Path) -> dict[str, set[Refused]]:
    """What each backend has refused for good so far."""
    lanes = RunDirectory(run_dir).lanes
    return {backend: set(look_up(lanes / f"{backend}.db")[1]) for backend in settings.backends}


def _record_bytes(files: Mapping[str, ImageFile]) -> int:
    """About how much the journal has to write down about so many staged files."""
    return sum(2 * len(name.encode()) + 64 for name in files)


def _next_step(before: Iterable[Previous | None]) -> int:
    """The number that the next version has; 0 where nobody counts."""
    numbers = [each.version.removeprefix("v") for each in before if each is not None]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _versions(found: Mapping[str, Previous | None], card: DatasetCard) -> tuple[dict[str, str], dict[str, str]]:
    """Backend to version and to reference; of one that cannot be asked, or has something newer by now, the latest."""
    mine = {backend: each if each and each.digest == card.digest else None for backend, each in found.items()}
    versions = {backend: each.version if each else "" for backend, each in mine.items()}
    references = {
        backend: each.reference if each else str(ArtifactReference(backend, None, card.name))
        for backend, each in mine.items()
    }
    return versions, references


@contextlib.contextmanager
def _secrets(settings: RunSettings) -> Iterator[None]:
    """Credentials that stood in URIs, where a backend's store looks for them."""
    before = {name: os.environ.get(name) for name in settings.secrets}
    os.environ.update(settings.secrets)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
