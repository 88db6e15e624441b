"""What a checkpoint needs to be used: the configuration it was trained with, its classes, and the card about both.

The card is the file `detector.json` of a model artifact. Artifacts of older versions, of plain loops, and of trainings
whose configuration is no file have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from unified_tracker._errors import TrackerError

CARD_FILE: Final = "detector.json"


class DetectorCard(msgspec.Struct, frozen=True, kw_only=True):
    """What the files of a model artifact are.

    Attributes:
        framework: "detectron2" or "mmdetection".
        weights: Name of the file with the weights; None where they are no single file (sharded checkpoints).
        config: Name of the configuration's file.
        classes: Names, label by label; empty where nobody has named them.
        category_ids: The data set's own ids, label by label; None unless all are known.
        imports: Modules that register parts of the model and belong to neither framework: importable where the model
            is to be built.
    """

    framework: str
    weights: str | None
    config: str
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] | None = None
    imports: tuple[str, ...] = ()


class Detector(msgspec.Struct, frozen=True, kw_only=True):
    """The same of a training, whose checkpoints differ in their weights only.

    Attributes:
        config: Name of the configuration's file in the artifact: "config.yaml", "config.py".
        text: What stands in it, secrets masked, the same in every process.
        framework, classes, category_ids, imports: As in `DetectorCard`.
    """

    framework: str
    config: str
    text: str
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] | None = None
    imports: tuple[str, ...] = ()

    def companions(self, checkpoint: Path) -> dict[str, bytes]:
        """Name to content of the files that belong beside a checkpoint."""
        card = DetectorCard(
            framework=self.framework,
            weights=checkpoint.name if checkpoint.is_file() else None,
            config=self.config,
            classes=self.classes,
            category_ids=self.category_ids,
            imports=self.imports,
        )
        return {
            self.config: self.text.encode("utf-8", "replace"),
            CARD_FILE: msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n",
        }


def read_card(folder: Path) -> DetectorCard | None:
    """The card of a model artifact that lies in a folder; None if it has none.

    Raises:
        TrackerError: There is one, and it is damaged.
    """
    path = folder / CARD_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=DetectorCard)
    except msgspec.MsgspecError as error:
        raise TrackerError(f"{path} is no card of a detector: {error}") from error


def config_digest(text: str) -> str:
    """16 hex digits that name a configuration, of its masked text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def modules_beyond(known: Iterable[str], modules: Iterable[str]) -> tuple[str, ...]:
    """Of module names those that no known package has, sorted; a script's own (`__main__`) nobody can import."""
    packages = {*known, "__main__", "builtins"}
    return tuple(sorted({name for name in modules if name.partition(".")[0] not in packages}))
