"""The collector of predictions: one pipeline for all ranks and both adapters."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from unified_tracker.predictions import Detections, SampleImage, choose_images
from unified_tracker.predictions._collector import Ranks, SampleCollector
from unified_tracker.predictions._sample import ImageId


class Source:
    """Images without annotations."""

    def __init__(self, ids: Collection[ImageId] | None, classes: tuple[str, ...] = ("a", "b")) -> None:
        self.name, self.classes = "data", classes
        self.category_ids, self.keypoint_names, self.skeleton = None, (), ()
        self._ids, self.kept, self.read = ids, None, []
        self.truth = Detections([0], [[1, 2, 3, 4]])

    def ids(self) -> Collection[ImageId] | None:
        return self._ids

    def keep(self, chosen: Collection[ImageId]) -> None:
        self.kept = set(chosen)

    def image(self, image_id: ImageId) -> SampleImage:
        self.read.append(image_id)
        if image_id == "broken":
            raise OSError("no such annotation")
        return SampleImage(image_id, 10, 20, path=f"{image_id}.jpg", truth={"instances": self.truth})


def found(score: float = 0.5, label: int = 0) -> Detections:
    return Detections([label], [[1, 2, 3, 4]], [score])


def scores(collector: SampleCollector) -> dict[ImageId, float]:
    evaluation = collector.collect("val", {})
    assert evaluation is not None
    return {
        image_id: float(tasks["instances"].scores.values()[0]) for image_id, tasks in evaluation.predictions.items()
    }


def test_sample_is_chosen_once_and_the_same_for_every_evaluation(tmp_path: Path) -> None:
    source = Source(range(50))
    collector = SampleCollector(source, 5, Ranks(tmp_path))
    chosen = choose_images(range(50), 5)
    assert source.kept == set(chosen)
    samples = []
    for name in "ab":
        collector.begin(name)
        for image_id in range(50):
            if collector.wants(image_id):
                collector.add(image_id, found, 10, 20)
        evaluation = collector.collect("val", {"val/bbox/mAP": 0.5})
        assert evaluation is not None
        assert sorted(evaluation.predictions) == chosen
        assert evaluation.metrics == {"val/bbox/mAP": 0.5}
        samples.append(evaluation.sample)
    assert samples[0] is samples[1]
    assert source.read == chosen


def test_image_that_comes_twice_counts_once(tmp_path: Path) -> None:
    collector = SampleCollector(Source([1, 2]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, lambda: found(0.9), 10, 20)
    assert not collector.wants(1)
    assert collector.wants(2) and not collector.wants(3) and not collector.wants(None)
    assert scores(collector) == {1: pytest.approx(0.9)}


def test_what_is_left_of_another_evaluation_is_forgotten(tmp_path: Path) -> None:
    collector = SampleCollector(Source([1, 2]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, found, 10, 20)
    collector.begin("b")
    assert collector.wants(1)
    assert collector.collect("val", {}) is None


def test_arrays_may_change_after_they_were_added(tmp_path: Path) -> None:
    boxes, bitmaps = np.array([[1.0, 2, 3, 4]]), np.ones((1, 10, 20), bool)
    collector = SampleCollector(Source([1]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, lambda: Detections([0], boxes, [0.5], bitmaps), 10, 20)
    boxes[:], bitmaps[:] = 0, False
    evaluation = collector.collect("val", {})
    assert evaluation is not None
    objects = evaluation.predictions[1]["instances"]
    assert objects.boxes.values().tolist() == [[1, 2, 3, 4]]
    assert objects.masks == [b"0X6"]


def test_malformed_image_is_left_out_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collector = SampleCollector(Source([1, 2, 3, 4]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, lambda: Detections([7], [[0, 0, 1, 1]], [0.5]), 10, 20)
    collector.add(2, lambda: Detections([0], [[0, 0, 1, 1]], [0.5], np.ones((1, 9, 9), bool)), 10, 20)
    collector.add(3, lambda: {}["nothing"], 10, 20)
    collector.add(4, found, 10, 20)
    assert list(scores(collector)) == [4]
    said = capsys.readouterr().err
    assert said.count("left out") == 1
    assert "predictions of image 1 left out, the others are recorded: RecordError: labels must be 0 to 1" in said


def test_image_whose_annotations_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collector = SampleCollector(Source(["broken", "fine"]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add("fine", found, 10, 20)
    evaluation = collector.collect("val", {})
    assert evaluation is not None
    assert [image.id for image in evaluation.sample.images] == ["fine"]
    assert "ground truth of image 'broken' left out" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[], [1]])
def test_data_set_without_any_annotation_says_nothing_about_what_is_true(tmp_path: Path, labels: list[int]) -> None:
    """As a test set whose annotations are not public: else every prediction would be a false one."""
    source = Source([1, 2])
    source.truth = Detections(labels, [[1, 2, 3, 4]] * len(labels))
    collector = SampleCollector(source, 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, found, 10, 20)
    evaluation = collector.collect("test", {})
    assert evaluation is not None
    assert [image.truth is None for image in evaluation.sample.images] == [not labels] * 2


def test_model_of_something_else_is_not_recorded(tmp_path: Path) -> None:
    collector = SampleCollector(Source([1]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, dict, 10, 20)
    assert collector.collect("val", {}) is None


def test_size_that_the_model_sees_goes_before_that_of_the_data_set(tmp_path: Path) -> None:
    collector = SampleCollector(Source([1, 2]), 5, Ranks(tmp_path))
    collector.begin("a")
    collector.add(1, found, 20, 10)
    evaluation = collector.collect("val", {})
    assert evaluation is not None
    assert [(image.height, image.width) for image in evaluation.sample.images] == [(20, 10), (10, 20)]


def test_all_ranks_come_together_and_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "unified-tracker"
    collectors = [SampleCollector(Source(range(8)), 8, Ranks(folder, rank, 3)) for rank in range(3)]
    for name in "ab":
        for rank, collector in enumerate(collectors):
            collector.begin(name)
            for image_id in [*range(rank, 8, 3), 0]:  # a sampler pads with the first
                if collector.wants(image_id):
                    collector.add(image_id, lambda rank=rank: found(0.1 * (rank + 1)), 10, 20)
        assert scores(collectors[0]) == {i: pytest.approx(0.1 * (i % 3 + 1)) for i in range(8)}
        assert list(folder.iterdir()) == []


def test_ranks_without_a_common_disk_and_killed_ones_do_no_harm(tmp_path: Path) -> None:
    ranks = [Ranks(tmp_path / "here", 0, 3), Ranks(tmp_path / "there", 1, 3), Ranks(tmp_path / "here", 2, 3)]
    collectors = [SampleCollector(Source(range(8)), 8, each) for each in ranks]
    for rank, collector in enumerate(collectors):
        collector.begin("a")
        for image_id in (rank, rank + 3):
            collector.add(image_id, found, 10, 20)
    part = ranks[2].part("a", 2)
    part.write_bytes(part.read_bytes()[:-5])  # killed while it wrote the last image
    assert sorted(scores(collectors[0])) == [0, 2, 3]


def test_a_rank_removes_what_it_has_left_behind_and_nothing_else(tmp_path: Path) -> None:
    for rank in (1, 11):
        collector = SampleCollector(Source([1]), 8, Ranks(tmp_path, rank, 12))
        collector.begin("a")
        collector.add(1, found, 10, 20)
    Ranks(tmp_path, 1, 12).clear()
    assert [path.suffix for path in tmp_path.iterdir()] == [".11"]


def test_folder_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    collector = SampleCollector(Source([1, 2]), 8, Ranks(tmp_path / "file", 1, 2))
    collector.begin("a")
    collector.add(1, found, 10, 20)
    collector.add(2, found, 10, 20)
    assert capsys.readouterr().err.count("handing over image 1 left out") == 1


@pytest.mark.parametrize("order", [1, -1])
def test_unknown_data_set_is_sampled_as_it_comes(tmp_path: Path, order: int) -> None:
    collectors = [SampleCollector(Source(None, ()), 5, Ranks(tmp_path, rank, 2)) for rank in range(2)]
    samples = []
    for name, label in (("a", 3), ("b", 1), ("c", 4)):
        for rank, collector in enumerate(collectors):
            collector.begin(name)
            for image_id in range(rank, 40, 2)[::order]:
                if collector.wants(image_id):
                    collector.add(image_id, lambda label=label: found(label=label), 10, 20, f"{image_id}.jpg")
        evaluation = collectors[0].collect("val", {})
        assert evaluation is not None
        chosen = choose_images(range(40), 5)
        assert sorted(evaluation.predictions) == chosen
        assert sorted(image.path for image in evaluation.sample.images) == sorted(f"{each}.jpg" for each in chosen)
        samples.append(evaluation.sample)
    assert samples[0].classes == ["0", "1", "2", "3"]
    assert samples[1] is samples[0]
    assert samples[2].classes == ["0", "1", "2", "3", "4"]


def test_no_random_state_is_touched(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    collector = SampleCollector(Source(range(50)), 5, Ranks(tmp_path))
    collector.begin("a")
    for image_id in range(50):
        if collector.wants(image_id):
            collector.add(image_id, found, 10, 20)
    assert len(scores(collector)) == 5
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
