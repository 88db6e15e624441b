"""Pictures of an evaluation: any number of classes, any name, nothing of Matplotlib's that others share."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import matplotlib.mathtext
import numpy as np
import pytest
from PIL import Image

from tests.predicting import prediction_sheet, random_detections, sample_sheet
from unified_tracker.predictions._analysis import analyse
from unified_tracker.predictions._curves import COCO_IOUS, accumulate
from unified_tracker.predictions._figures import _most_confused, confusion_figure, curves_figure
from unified_tracker.predictions._scores import TaskScores


def scores(classes: int) -> TaskScores:
    truth, predicted = random_detections(classes, images=20, objects=40, classes=classes)
    return analyse(sample_sheet(truth, classes), prediction_sheet(predicted, classes)).scores["instances"]


def draw(found: TaskScores, names: list[str]) -> list[Image.Image]:
    assert found.curves is not None
    contents = [
        confusion_figure(found.confusion, names, iou=0.5, threshold=0.3),
        curves_figure(found.curves, names),
    ]
    return [Image.open(io.BytesIO(content)) for content in contents]


@pytest.mark.parametrize("classes", [1, 3, 80, 1203])
def test_any_number_of_classes_fits_in_a_picture(classes: int) -> None:
    for picture in draw(scores(classes), [f"class {label}" for label in range(classes)]):
        assert picture.format == "PNG"
        assert 250 < picture.width < 1800 and 250 < picture.height < 1800
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


NAMES = ["$x$", "$\\frac{1}{", "_hidden", "a_b^c", "交通标志", "Käfer", "", "\n\t<script>", "%s {} \\", "ש" * 200]


def test_names_are_text_and_never_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object, **__: object) -> None:
        raise AssertionError("a name was read as a formula")

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", parse)
    assert len(draw(scores(len(NAMES)), NAMES)) == 2


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    found = scores(1)
    (_, hidden), (_, empty) = draw(found, ["_hidden"]), draw(found, [""])
    assert hidden.size != empty.size or hidden.tobytes() != empty.tobytes()


def test_characters_that_no_font_has_leave_the_label_to_tell_classes_apart() -> None:
    found = scores(2)
    private = ["\ue000\ue001", "\ue002\ue003"]
    (_, first), (_, swapped) = draw(found, private), draw(found, private[::-1])
    assert first.tobytes() == swapped.tobytes()  # □□ #0 and □□ #1, whatever the characters are
    (_, other) = draw(found, ["\u25a1\u25a1", "\u25a1\u25a1"])
    assert first.size != other.size or first.tobytes() != other.tobytes()


def test_without_objects_and_without_predictions_there_is_a_picture_all_the_same() -> None:
    nothing = accumulate([], COCO_IOUS)
    assert Image.open(io.BytesIO(curves_figure(nothing, ["a"]))).width > 500
    empty = np.zeros((2, 2), np.int64)
    assert Image.open(io.BytesIO(confusion_figure(empty, ["a"], iou=0.5, threshold=0.3))).width > 250


def test_classes_that_have_no_room_are_summed_up_and_none_is_lost() -> None:
    confusion = np.random.default_rng(0).integers(0, 5, (301, 301))
    confusion[7, 250] = 1000
    summed, names = _most_confused(confusion, [str(label) for label in range(300)])
    assert summed.sum() == confusion.sum()
    assert summed[-1].sum() == confusion[-1].sum() and summed[:, -1].sum() == confusion[:, -1].sum()
    assert {"7", "250"} <= set(names) and names[-1] == "260 others"
    assert summed[names.index("7"), names.index("250")] == 1000


def test_drawing_leaves_pyplot_alone() -> None:
    program = (
        "import sys, numpy as np; from unified_tracker.predictions._figures import confusion_figure;"
        "confusion_figure(np.eye(3, dtype=int), ['a', 'b'], iou=0.5, threshold=0.3);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_importing_the_types_for_logging_loads_neither_matplotlib_nor_pycocotools() -> None:
    """They are what the training process imports."""
    program = (
        "import sys, unified_tracker.predictions;"
        "sys.exit(bool({'matplotlib', 'pycocotools', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_two_threads_may_draw_at_once() -> None:
    found = scores(3)
    names = ["one", "two", "three"]
    expected = [picture.tobytes() for picture in draw(found, names)]
    drawn: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: drawn.append([each.tobytes() for each in draw(found, names)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert drawn == [expected] * 4
