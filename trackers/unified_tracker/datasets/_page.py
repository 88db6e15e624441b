"""The page of a data set: pictures under what is true, and statistics; made of the page that shows predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from unified_tracker._errors import RecordError
from unified_tracker.datasets._card import DatasetCard
from unified_tracker.datasets._coco import Coco, Entry, box_of
from unified_tracker.datasets._pictures import ImageFile
from unified_tracker.datasets._statistics import CLASS_COLUMNS
from unified_tracker.predictions._analysis import show_sample
from unified_tracker.predictions._detections import Detections
from unified_tracker.predictions._document import Document, ShownTable
from unified_tracker.predictions._page import page_bytes, size_without_pictures
from unified_tracker.predictions._pictures import PAGE_BYTES, Source, fit_pictures
from unified_tracker.predictions._sample import ImageId
from unified_tracker.predictions._sheets import ImageSheet, SampleSheet, TaskObjects, pack_tasks

MOST_IMAGES: Final = 300
PICTURE_BYTES: Final = 24 << 10  # of a picture, on average


def truth_page(card: DatasetCard, coco: Coco, files: Mapping[str, ImageFile]) -> bytes:
    """The page, self-contained; the same for the same data set.

    Of more than 300 images, as many are shown, evenly chosen.

    Args:
        card, coco: The data set.
        files: File name to image file.
    """
    chosen = evenly(coco.images, MOST_IMAGES)
    labels = {category["id"]: label for label, category in enumerate(coco.categories)}
    of_image: defaultdict[ImageId, list[Entry]] = defaultdict(list)
    for annotation in coco.annotations:
        of_image[annotation["image_id"]].append(annotation)
    names, skeleton = _keypoints(coco)
    sheet = SampleSheet(
        card.name,
        [category["name"] for category in coco.categories],
        [category["id"] for category in coco.categories],
        names,
        skeleton,
        [_sheet(image, of_image[image["id"]], labels, len(names)) for image in chosen],
    )
    document = Document(
        title=card.name,
        dataset=card.digest[:12],
        classes=sheet.classes,
        category_ids=sheet.category_ids,
        images=show_sample(sheet),
        evaluations=[],
        keypoint_names=names,
        skeleton=skeleton,
        notes=_notes(card, len(chosen)),
        tables=statistics_tables(card),
    )
    sources: dict[ImageId, Source] = {image["id"]: files[image["file_name"]].path for image in chosen}
    budget = size_without_pictures(document) + PICTURE_BYTES * len(chosen)
    fit_pictures(document, sources, min(budget, PAGE_BYTES))
    return page_bytes(document)


def evenly(images: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many images, from the first to the last at equal distances."""
    if len(images) <= most:
        return list(images)
    return [images[place * len(images) // most] for place in range(most)]


def statistics_tables(card: DatasetCard) -> list[ShownTable]:
    """The statistics of the whole data set: by class, by size of objects, by size of images."""
    statistics = card.statistics
    sizes: list[list[Any]] = [
        ["small: below 32² pixels", statistics.sizes["small"]],
        ["medium: below 96² pixels", statistics.sizes["medium"]],
        ["large", statistics.sizes["large"]],
    ]
    pictures: list[list[Any]] = [[size, number] for size, number in statistics.image_sizes.items()]
    if statistics.other_image_sizes:
        pictures.append(["other sizes", statistics.other_image_sizes])
    return [
        ShownTable("Classes", CLASS_COLUMNS, statistics.class_rows()),
        ShownTable("Objects", ["area", "objects"], sizes),
        ShownTable("Images", ["width x height", "images"], pictures),
    ]


def _notes(card: DatasetCard, shown: int) -> list[str]:
    if shown == card.images:
        return []
    return [f"{shown:,} of {card.images:,} images are shown, evenly chosen; the statistics are of all of them"]


def _sheet(image: Entry, annotations: list[Entry], labels: Mapping[int, int], keypoints: int) -> ImageSheet:
    height, width = image["height"], image["width"]
    given = _detections(annotations, labels, keypoints)
    truth: TaskObjects
    try:
        truth = pack_tasks(given, height, width, len(labels), predicted=False)
    except (RecordError, ValueError, TypeError, KeyError, OverflowError):  # masks or keypoints of no known form
        bare = Detections(given.labels, given.boxes, crowd=given.crowd)
        truth = pack_tasks(bare, height, width, len(labels), predicted=False)
    return ImageSheet(image["id"], image["file_name"], height, width, "", 0, 0, truth)


def _detections(annotations: list[Entry], labels: Mapping[int, int], keypoints: int) -> Detections:
    boxes = [box_of(each) for each in annotations]
    masks = None
    if any(each.get("segmentation") for each in annotations):
        masks = [each.get("segmentation") or _rectangle(box) for each, box in zip(annotations, boxes, strict=True)]
    points = None
    given = [each.get("keypoints") for each in annotations]
    if keypoints and any(given):
        none = [0] * 3 * keypoints
        flat = [each or none for each in given]
        points = [[each[3 * k : 3 * k + 3] for k in range(keypoints)] for each in flat]
    return Detections(
        labels=[labels[each["category_id"]] for each in annotations],
        boxes=[[x, y, x + width, y + height] for x, y, width, height in boxes],
        masks=masks,
        keypoints=points,
        crowd=[bool(each.get("iscrowd")) for each in annotations],
    )


def _rectangle(box: tuple[float, float, float, float]) -> list[list[float]]:
    """The box as a polygon, for the object without a mask among others that have one."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _keypoints(coco: Coco) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of the keypoints and what joins them, 0-based, of the first category that has some."""
    for category in coco.categories:
        names = category.get("keypoints")
        if isinstance(names, list) and names:
            pairs = [pair for pair in category.get("skeleton") or [] if isinstance(pair, list) and len(pair) == 2]
            joined = [(a - 1, b - 1) for a, b in pairs if {a - 1, b - 1} <= set(range(len(names)))]
            return [str(name) for name in names], joined
    return [], []
