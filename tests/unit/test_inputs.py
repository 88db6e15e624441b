"""What a run was made from: hashed and described beside the training, and compared with what it should not share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unified_tracker._inputs import Inputs, as_json, identity, of_json
from unified_tracker._journal import ATTEMPT_SHIFT
from unified_tracker._rundir import RunDirectory
from unified_tracker.records import Entry, Input, Position, StagedFile


def coco(folder: Path, name: str, images: list[str]) -> Path:
    content = {
        "images": [{"id": number, "file_name": image} for number, image in enumerate(images)],
        "annotations": [{"id": number, "image_id": number, "category_id": 7} for number in range(len(images))],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    path = folder / name
    path.write_bytes(msgspec.json.encode(content))
    return path


def used(path: Path, role: str, name: str = "set", kind: str = "dataset", **metadata: Any) -> Input:
    stat = path.stat()
    file = StagedFile(path.name, str(path), stat.st_size, stat.st_mtime_ns)
    return Input(1, role, kind, str(path), name, file=file, metadata=metadata)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    folder = tmp_path / "run"
    folder.mkdir()
    return Inputs(RunDirectory(folder))


def completed(inputs: Inputs, record: Input, attempt: int = 1) -> tuple[Input, dict[str, str]]:
    found = inputs.completed(Entry((attempt << ATTEMPT_SHIFT) + 1, record, Position()))
    assert isinstance(found.entry.record, Input)
    return found.entry.record, found.warnings


def test_a_local_file_is_recorded_with_its_digest(inputs: Inputs, tmp_path: Path) -> None:
    weights = tmp_path / "R-50.pkl"
    weights.write_bytes(b"weights")
    record, warnings = completed(inputs, used(weights, "weights", kind="model"))
    assert (record.digest, warnings) == (hashlib.sha256(b"weights").hexdigest(), {})


def test_a_data_set_is_described(inputs: Inputs, tmp_path: Path) -> None:
    record, _ = completed(inputs, used(coco(tmp_path, "a.json", ["1.jpg", "2.jpg"]), "train"))
    assert record.metadata == {"num_images": 2, "num_objects": 2, "classes": {"cat": 0, "dog": 2}}


def test_a_file_that_has_changed_meanwhile_is_recorded_without_a_digest_and_says_so(
    inputs: Inputs, tmp_path: Path
) -> None:
    path = coco(tmp_path, "a.json", ["1.jpg"])
    record = used(path, "train")
    path.write_text("something else")
    found, _ = completed(inputs, record)
    assert found.digest == ""
    assert "written over" in found.metadata["digest_missing"]


@pytest.mark.parametrize("content", [b"", b"no json", b'{"images": 3}', b"\xff\xfe"])
def test_an_annotation_file_that_is_no_coco_is_hashed_all_the_same(
    inputs: Inputs, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    record, warnings = completed(inputs, used(path, "train"))
    assert (record.digest, warnings) == (hashlib.sha256(content).hexdigest(), {})


def test_an_image_in_training_and_validation_is_told(inputs: Inputs, tmp_path: Path) -> None:
    completed(inputs, used(coco(tmp_path, "a.json", ["1.jpg", "2.jpg", "3.jpg"]), "train", "mine", images="/data"))
    val = used(coco(tmp_path, "b.json", ["3.jpg", "4.jpg"]), "val", "theirs", images="/data")
    _, warnings = completed(inputs, val)
    assert "1 images are in the training set 'mine' and in the val set 'theirs' as well (3.jpg)" in warnings["leakage"]
    _, again = completed(inputs, val)
    assert again == warnings


def test_files_of_one_name_in_different_folders_are_different_images(inputs: Inputs, tmp_path: Path) -> None:
    completed(inputs, used(coco(tmp_path, "a.json", ["1.jpg"]), "train", images="/data/train"))
    _, warnings = completed(inputs, used(coco(tmp_path, "b.json", ["1.jpg"]), "val", images="/data/val"))
    assert warnings == {}


def test_of_artifacts_the_content_of_images_counts(inputs: Inputs, tmp_path: Path) -> None:
    for name, digest in (("train", "aa"), ("val", "aa"), ("other", "bb")):
        (tmp_path / name).mkdir()
        description = {"files": {f"images/{name}.jpg": {"size": 1, "sha256": digest}}}
        (tmp_path / name / "dataset.json").write_bytes(msgspec.json.encode(description))

    def of(name: str, role: str) -> Input:
        return Input(
            1, role, "dataset", name, name, "v0", name, "mlflow", name, metadata={"folder": str(tmp_path / name)}
        )

    record, _ = completed(inputs, of("train", "train"))
    assert "folder" not in record.metadata  # a path of this machine says nothing on a run
    assert completed(inputs, of("other", "val"))[1] == {}
    assert "as well (val.jpg)" in completed(inputs, of("val", "test"))[1]["leakage"]


def test_a_validation_set_that_changed_on_resume_is_told(inputs: Inputs, tmp_path: Path) -> None:
    first = used(coco(tmp_path, "a.json", ["1.jpg"]), "val", "mine")
    completed(inputs, first)
    assert completed(inputs, first, attempt=2)[1] == {}
    changed = used(coco(tmp_path, "b.json", ["1.jpg", "2.jpg"]), "val", "mine")
    _, warnings = completed(inputs, changed, attempt=3)
    assert "the val data set 'mine' is not the one of the training before it was resumed" in warnings["changed.val"]


def test_a_tag_says_everything_that_is_known(inputs: Inputs, tmp_path: Path) -> None:
    plain, _ = completed(inputs, used(coco(tmp_path, "a.json", ["1.jpg"]), "train", images="/data"))
    tracked = Input(
        3,
        "weights",
        "model",
        "mlflow-artifact://a:best",
        "a",
        "v3",
        "d",
        "mlflow",
        "models:/m-1",
        metrics={"AP": 0.5},
        step=0,
    )
    assert of_json(as_json([plain, tracked])) == [plain, tracked]
    assert of_json("[cut sho") == of_json('[{"somebody": "else"}]') == []


def test_the_same_thing_has_one_identity_in_every_run_and_role() -> None:
    one = Input(1, "weights", "model", "mlflow-artifact://a:best", "a", "v3", "d", "mlflow", "models:/m-1")
    other = Input(2, "checkpoint", "model", "models:/m-1", "a", "v3", "d", "mlflow", "models:/m-1")
    assert identity(one) == identity(other) != identity(Input(1, "weights", "model", "x.pth", "x.pth", digest="d"))
