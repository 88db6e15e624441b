"""Documents to look at: shapes drawn on images, and two or more models that get some of them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from unified_tracker.predictions._document import ClassRow, Document, ShownEvaluation, ShownImage, ShownObjects
from unified_tracker.predictions._pictures import fit_pictures

CLASSES = ("circle", "square", "triangle")
IOUS = (0.5, 0.75)
JOINTS = ("head", "left hand", "right hand", "left foot", "right foot", "hip")
BONES = [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]
Floats = npt.NDArray[np.float64]


@dataclass
class Scene:
    """Shapes of one image, as boxes and labels."""

    boxes: Floats
    labels: npt.NDArray[np.int64]


def make_document(
    images: int = 12,
    objects: int = 6,
    *,
    evaluations: int = 2,
    classes: Sequence[str] = CLASSES,
    size: tuple[int, int] = (640, 480),
    masks: bool = False,
    keypoints: bool = False,
    truth: bool = True,
    tasks: Sequence[str] = ("instances",),
    pictures: bool = True,
    seed: int = 0,
) -> Document:
    """A document with about `objects` true objects an image; later evaluations are better."""
    rng = np.random.default_rng(seed)
    shown, scenes = [], []
    for index in range(images):
        scene = _scene(rng, objects, len(classes), size)
        scenes.append(scene)
        true = _objects(scene.boxes, scene.labels, size, masks, keypoints)
        if index % 7 == 3 and len(scene.labels):
            true.c = [0]
        tasked: Any = {task: _regions(scene, task, size, len(classes)) or true for task in tasks}
        shown.append(ShownImage(index + 1, f"val/image_{index + 1:05d}.jpg", *size, truth=tasked if truth else None))
    every = []
    for number in range(evaluations):
        skill = 0.5 + 0.4 * (number + 1) / evaluations
        every.append(_evaluation(rng, number, skill, shown, scenes, tasks, size, classes, masks, keypoints))
    document = Document("Shapes", "shapes-val", list(classes), list(range(1, len(classes) + 1)), shown, every)
    if keypoints:
        document.keypoint_names, document.skeleton = list(JOINTS), BONES
    if pictures:
        fit_pictures(document, {image.id: draw(scene, size, rng) for image, scene in zip(shown, scenes, strict=True)})
    return document


def draw(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture of a scene."""
    width, height = size
    ramp = np.linspace(0, 1, width)[None, :, None] * rng.uniform(20, 90, 3) + rng.uniform(60, 140, 3)
    coarse = rng.normal(0, 14, (height // 8 + 1, width // 8 + 1, 1)).repeat(8, 0).repeat(8, 1)[:height, :width]
    picture = Image.fromarray((ramp + coarse).clip(0, 255).astype(np.uint8))
    for box, label in zip(scene.boxes, scene.labels, strict=True):
        colour = tuple(int(part) for part in rng.integers(30, 240, 3))
        ImageDraw.Draw(picture).polygon(_outline(box, int(label)), fill=colour)
    return np.asarray(picture)


def _scene(rng: np.random.Generator, objects: int, classes: int, size: tuple[int, int]) -> Scene:
    count = int(rng.integers(max(objects // 2, 0), objects + objects // 2 + 1))
    sides = rng.uniform(0.05, 0.3 if objects < 30 else 0.12, (count, 2)) * min(size)
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(size) - sides)
    return Scene(np.hstack([corners, corners + sides]).round(1), rng.integers(0, classes, count))


def _outline(box: Floats, label: int) -> list[tuple[float, float]]:
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    corners, turn = ((24, 0.0), (4, np.pi / 4), (3, -np.pi / 2))[label % 3]
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    stretch = np.sqrt(2) if corners == 4 else 1
    return [
        (float(centre[0] + stretch * half[0] * np.cos(a)), float(centre[1] + stretch * half[1] * np.sin(a)))
        for a in angles
    ]


def _objects(
    boxes: Floats, labels: npt.NDArray[np.int64], size: tuple[int, int], masks: bool, keypoints: bool
) -> ShownObjects:
    shown = ShownObjects(labels.tolist(), boxes.round(1).ravel().tolist())
    if masks:
        shown.m = [_mask(_outline(box, int(label)), size) for box, label in zip(boxes, labels, strict=True)]
    if keypoints:
        shown.k = [_joints(box) for box in boxes]
    return shown


def _mask(outline: list[tuple[float, float]], size: tuple[int, int]) -> str:
    flat = [coordinate for point in outline for coordinate in point]
    return str(coco.merge(coco.frPyObjects([flat], size[1], size[0]))["counts"].decode())


def _joints(box: Floats) -> list[float]:
    places = np.array([[0.5, 0.1], [0.1, 0.4], [0.9, 0.4], [0.25, 0.95], [0.75, 0.95], [0.5, 0.6]])
    points = box[:2] + places * (box[2:] - box[:2])
    return [float(number) for x, y in points.round(1) for number in (x, y, 2)]


def _regions(scene: Scene, task: str, size: tuple[int, int], classes: int) -> ShownObjects | None:
    """Masks that cover the image: of each class its shapes, and the ground as the first class."""
    if task == "instances":
        return None
    label_map = Image.new("L", size, 0)
    for box, label in zip(scene.boxes, scene.labels, strict=True):
        ImageDraw.Draw(label_map).polygon(_outline(box, int(label)), fill=int(label))
    pixels = np.asarray(label_map)
    there = [label for label in range(classes) if (pixels == label).any()]
    counts = [coco.encode(np.asfortranarray(pixels == label).astype(np.uint8))["counts"].decode() for label in there]
    return ShownObjects(there, m=counts)


def _evaluation(
    rng: np.random.Generator,
    number: int,
    skill: float,
    shown: list[ShownImage],
    scenes: list[Scene],
    tasks: Sequence[str],
    size: tuple[int, int],
    classes: Sequence[str],
    masks: bool,
    keypoints: bool,
) -> ShownEvaluation:
    images: list[Any] = []
    for image, scene in zip(shown, scenes, strict=True):
        boxes, labels, scores = _predict(rng, scene, skill, len(classes), size)
        predicted = _objects(boxes, labels, size, masks, keypoints)
        predicted.s = scores.tolist()
        if image.truth and "instances" in image.truth:
            _judge(image.truth["instances"], scene, predicted, boxes)
        tasked: Any = {}
        for task in tasks:
            regions = _regions(Scene(boxes[scores > 0.3], labels[scores > 0.3]), task, size, len(classes))
            if regions and image.truth:
                regions.s = [1.0] * len(regions.l)
                found = [image.truth[task].l.index(each) if each in image.truth[task].l else -1 for each in regions.l]
                regions.g = [found for _ in IOUS]
                regions.e = ["".join("b" if each < 0 else "t" for each in found) for _ in IOUS]
            tasked[task] = regions or predicted
        images.append(tasked)
    evaluation = ShownEvaluation(
        f"abcd1234/{100 * (number + 1)}",
        f"iter {100 * (number + 1)}",
        "abcd1234",
        "val",
        100 * (number + 1),
        number + 1.0,
        0.3,
        list(IOUS),
    )
    evaluation.images = images
    evaluation.metrics = {"val/bbox/mAP": round(0.3 + skill / 3, 4), "val/bbox/mAP_50": round(0.4 + skill / 3, 4)}
    evaluation.classes = {"instances": _class_rows(shown, evaluation, len(classes))} if shown and shown[0].truth else {}
    return evaluation


def _predict(
    rng: np.random.Generator, scene: Scene, skill: float, classes: int, size: tuple[int, int]
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """What a model of some skill says: some objects moved, taken for another class, found twice, or not found."""
    chosen = np.flatnonzero(rng.random(len(scene.labels)) < 0.7 + 0.25 * skill)
    chosen = np.concatenate([chosen, chosen[rng.random(len(chosen)) < 0.15]])
    boxes = scene.boxes[chosen]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    far = rng.random((len(chosen), 1)) > skill
    boxes = boxes + rng.normal(0, 1, boxes.shape) * sides * np.where(far, 0.2, 0.03)
    other = rng.random(len(chosen)) > 0.6 + 0.4 * skill
    labels = np.where(other, (scene.labels[chosen] + 1) % classes, scene.labels[chosen])
    scores = rng.beta(5, 2, len(chosen)) * np.where(other, 0.7, 1.0)
    nothing = _scene(rng, max(1, len(scene.labels) // 3), classes, size)
    boxes, labels = np.vstack([boxes, nothing.boxes]), np.concatenate([labels, nothing.labels])
    scores = np.concatenate([scores, rng.beta(1.5, 5, len(nothing.labels))])
    order = np.argsort(-scores)
    return boxes[order].clip(0, max(size)).round(1), labels[order], scores[order].round(3)


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """IoU of every box with every other."""
    a, b = boxes.reshape(-1, 1, 4), others.reshape(1, -1, 4)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    area = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (a, b)]
    result: Floats = shared / np.maximum(area[0] + area[1] - shared, 1e-9)
    return result


def _judge(truth: ShownObjects, scene: Scene, predicted: ShownObjects, boxes: Floats) -> None:
    overlap = overlaps(boxes, scene.boxes) if len(scene.labels) else np.zeros((len(boxes), 1)) - 1
    predicted.o = overlap.max(axis=1).clip(0).round(3).tolist()
    for iou in IOUS:
        found: set[int] = set()
        matches, kinds = [], ""
        for row, label in zip(overlap, predicted.l, strict=True):
            kind, match = _judge_one(row, scene.labels, label, iou, found, set(truth.c))
            if kind == "t":
                found.add(match)
            kinds += kind
            matches.append(match)
        predicted.g.append(matches)
        predicted.e.append(kinds)


def _judge_one(
    row: Floats, labels: npt.NDArray[np.int64], label: int, iou: float, found: set[int], crowd: set[int]
) -> tuple[str, int]:
    if not len(labels):
        return "b", -1
    same = labels == label
    plain = np.array([i not in crowd for i in range(len(labels))])
    free = np.array([i not in found for i in range(len(labels))])
    for kind, wanted, least in (
        ("t", same & plain & free, iou),
        ("i", same & ~plain, iou),
        ("d", same & plain, iou),
        ("c", ~same & plain, iou),
        ("l", same & plain, 0.1),
    ):
        best = int(np.argmax(np.where(wanted, row, -1)))
        if wanted[best] and row[best] >= least:
            return kind, best
    return "b", -1


# ---- what the page should count, computed another way --------------------------------------------------------------


def count(
    document: Document, index: int, threshold: float, *, evaluation: int = -1, iou: int = 0, labels: Any = None
) -> dict[str, int]:
    """Objects of one image by kind: the letters of the document, and "m" for missed."""
    truth = document.images[index].truth
    predicted = (document.evaluations[evaluation].images[index] or {})["instances"]
    kinds = dict.fromkeys("tbcldim", 0)
    found = set()
    for i, score in enumerate(predicted.s):
        if score < threshold:
            continue
        if predicted.e[iou][i] == "t":
            found.add(predicted.g[iou][i])
        if labels is None or predicted.l[i] in labels:
            kinds[predicted.e[iou][i]] += 1
    true = (truth or {})["instances"]
    for i, label in enumerate(true.l):
        if i not in found and i not in true.c and (labels is None or label in labels):
            kinds["m"] += 1
    return kinds


def f1(kinds: dict[str, int]) -> float:
    """F1 of counts by kind; NaN if there is nothing."""
    errors = sum(kinds[letter] for letter in "bcldm")
    return 2 * kinds["t"] / (2 * kinds["t"] + errors) if kinds["t"] + errors else float("nan")


def _class_rows(shown: list[ShownImage], evaluation: ShownEvaluation, classes: int) -> list[ClassRow]:
    document = Document("", "", [""] * classes, [], shown, [evaluation])
    rows = []
    for label in (-1, *range(classes)):
        wanted = None if label < 0 else {label}
        kinds = (
            [count(document, i, evaluation.threshold, labels=wanted) for i in range(len(shown))]
            if classes < 100
            else []
        )
        right, missed = (sum(each[letter] for each in kinds) for letter in "tm")
        wrong = sum(each[letter] for each in kinds for letter in "bcld")
        precision, recall = (right / (right + other) if right + other else None for other in (wrong, missed))
        ap = None if recall is None or precision is None else round(precision * recall, 4)
        rows.append(ClassRow(label, ap, ap, right, wrong, missed, precision, recall, recall))
    return rows
