"""The report: what the uploader makes of predictions, for a backend that knows nothing of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.unit.test_lane import MemoryTracker, deliver, directory
from unified_tracker._journal import now_ms
from unified_tracker._lane import DONE
from unified_tracker._rundir import RunDirectory
from unified_tracker._staging import Staging
from unified_tracker.predictions import Detections, SampleEvaluation, SampleImage, ValidationSample, _report
from unified_tracker.predictions._document import Document
from unified_tracker.predictions._page import read_page
from unified_tracker.predictions._writer import SampleWriter
from unified_tracker.records import Finished, Predictions

BOX = [[5.0, 5, 30, 30]]


def predicted(folder: Path, count: int = 3, evaluations: int = 1) -> tuple[RunDirectory, list[Path]]:
    """A finished run with evaluations of images, each of which holds one object that was found."""
    images = []
    for number in range(count):
        images.append(folder / f"{number}.png")
        Image.fromarray(np.full((40, 60, 3), 40 * number, np.uint8)).save(images[-1])
    truth = Detections([0], BOX)
    sample = ValidationSample(
        "d", ["thing"], [SampleImage(n, 40, 60, path=p, truth=truth) for n, p in enumerate(images)]
    )
    run_dir = folder / "unified-tracker" / "abcd1234"
    run_dir.mkdir(parents=True)
    writer = SampleWriter(Staging(run_dir, 1))
    records = []
    for step in range(1, evaluations + 1):
        found = {number: Detections([0], BOX, [0.9 - step / 100]) for number in range(count)}
        files = writer.write(SampleEvaluation(sample, found))
        records.append(Predictions(now_ms(), step, None, "val", "d", files[0], files[1], (f"iter_{step}",), count))
    return directory(folder, *records, Finished(now_ms(), "FINISHED")), images


def page(tracker: MemoryTracker, folder: Path) -> Document:
    (folder / "page.html").write_bytes(tracker.artifacts["index.html"])
    return read_page(folder / "page.html")


def test_a_backend_without_a_way_of_its_own_gets_page_and_data_as_an_artifact(tmp_path: Path) -> None:
    place, _ = predicted(tmp_path)
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert {"index.html", "coco_results.json"} <= set(tracker.artifacts)
    assert [row["score"] for row in msgspec.json.decode(tracker.artifacts["coco_results.json"])] == [0.89] * 3
    shown = page(tracker, tmp_path)
    assert [each["instances"].e[0] for each in shown.evaluations[0].images if each] == ["t"] * 3
    assert tracker.tags["unified_tracker.delivery"] == "complete"


def test_a_picture_that_vanishes_or_changes_leaves_the_rest(tmp_path: Path) -> None:
    place, images = predicted(tmp_path)
    images[0].unlink()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(images[1].with_suffix(".bmp"))
    shutil.move(images[1].with_suffix(".bmp"), images[1])
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    shown = page(tracker, tmp_path)
    assert [bool(image.src) for image in shown.images] == [False, False, True]
    assert "No such file" in shown.images[0].why
    assert "has changed since it was evaluated" in shown.images[1].why


def test_pictures_outlive_the_data_set(tmp_path: Path) -> None:
    place, images = predicted(tmp_path, evaluations=2)

    def remove(call: str, _: object) -> None:
        if call == "log_artifact":  # the first evaluation is delivered: its pictures are kept
            for path in images:
                path.unlink(missing_ok=True)

    tracker = MemoryTracker(remove)
    assert deliver(place, tracker) == DONE
    assert tracker.calls.count("log_artifact") == 2
    assert all(image.src for image in page(tracker, tmp_path).images)
    overview = read_page(place.path / "predictions" / "index.html")
    assert [evaluation.step for evaluation in overview.evaluations] == [1, 2]


@pytest.mark.parametrize("which", ["*.sample", "*.predictions"])
def test_a_damaged_sheet_is_set_aside_and_the_run_goes_on(tmp_path: Path, which: str) -> None:
    place, _ = predicted(tmp_path)
    (sheet,) = (place.path / "predictions").glob(which)
    sheet.write_bytes(b"\xc1" * sheet.stat().st_size)
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert tracker.artifacts == {}
    assert tracker.tags["unified_tracker.delivery"] == "partial"
    assert tracker.ended is not None and tracker.ended[0] == "FINISHED"


def test_the_same_record_makes_the_same_bytes_again(tmp_path: Path) -> None:
    place, _ = predicted(tmp_path)
    contents = []
    for _ in range(2):
        tracker = MemoryTracker()
        assert deliver(place, tracker) == DONE
        contents.append(tracker.artifacts)
        shutil.rmtree(place.lanes)
        place.lanes.mkdir()
        for folder in (place.path / "predictions").glob("val-*"):
            shutil.rmtree(folder)
    assert contents[0] == contents[1]


def test_the_same_predictions_on_another_truth_are_matched_again(tmp_path: Path) -> None:
    place, images = predicted(tmp_path)
    assert deliver(place, MemoryTracker()) == DONE
    writer = SampleWriter(Staging(place.path, 2))
    nothing = Detections([], [])
    every = [SampleImage(number, 40, 60, path=path, truth=nothing) for number, path in enumerate(images)]
    found = {number: Detections([0], BOX, [0.89]) for number in range(len(images))}
    sample, file, _ = writer.write(SampleEvaluation(ValidationSample("d", ["thing"], every), found))
    directory(tmp_path, Predictions(now_ms(), 1, None, "val", "d", sample, file), Finished(now_ms(), "FINISHED"))
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert [each["instances"].e[0] for each in page(tracker, tmp_path).evaluations[0].images if each] == ["b"] * 3


def test_an_uploader_that_dies_over_the_page_of_the_run_makes_it_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = predicted(tmp_path)
    overview = place.path / "predictions" / "index.html"
    write, failures = _report.write_page, ["once"]

    def dying(document: Document, target: Path) -> None:
        if target == overview and failures:
            raise OSError(failures.pop())
        write(document, target)

    monkeypatch.setattr(_report, "write_page", dying)
    tracker = MemoryTracker()
    assert deliver(place, tracker) == DONE
    assert failures == []
    assert [evaluation.step for evaluation in read_page(overview).evaluations] == [1]
    assert tracker.tags["unified_tracker.delivery"] == "complete"
