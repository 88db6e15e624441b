"""The card of a detector: what a checkpoint is, for whoever uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_tracker._detector import CARD_FILE, Detector, config_digest, modules_beyond, read_card
from unified_tracker._errors import TrackerError
from unified_tracker._mask import mask_source, unsalted

names = st.lists(st.text(st.characters(codec="utf-8")), max_size=5).map(tuple)


@given(names, st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple))
def test_a_card_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, classes: tuple[str, ...], ids: tuple[int, ...] | None
) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "w.pth").write_bytes(b"")
    detector = Detector(framework="mmdetection", config="config.py", text="", classes=classes, category_ids=ids)
    (folder / CARD_FILE).write_bytes(detector.companions(folder / "w.pth")[CARD_FILE])
    card = read_card(folder)
    assert card is not None
    assert (card.framework, card.weights, card.config) == ("mmdetection", "w.pth", "config.py")
    assert (card.classes, card.category_ids) == (classes, ids)


def test_artifacts_of_older_versions_have_no_card(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"framework": 1}', b"\xff"])
def test_a_damaged_card_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CARD_FILE).write_bytes(content)
    with pytest.raises(TrackerError, match=r"detector\.json is no card of a detector"):
        read_card(tmp_path)


def test_the_digest_of_a_configuration_with_secrets_is_the_same_in_every_process() -> None:
    text = mask_source("password: hunter22\nlr: 0.1\n")
    assert text != unsalted(text) == "password: ***\nlr: 0.1\n"
    assert config_digest(unsalted(text)) == "40ca5948ab44b8fd"


def test_modules_of_neither_framework_nor_script_are_to_be_imported() -> None:
    found = ["torch.nn", "mine.heads", "torchvision.ops", "__main__", "mine.heads", "another"]
    assert modules_beyond(("torch", "torchvision"), found) == ("another", "mine.heads")
