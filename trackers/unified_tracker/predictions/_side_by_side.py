"""Two recorded evaluations side by side: one document, whose page shows what got fixed and what broke."""

from __future__ import annotations

import msgspec

from unified_tracker._errors import TrackerError
from unified_tracker.predictions._document import Document, ShownEvaluation, ShownImage


def chosen(document: Document, wanted: str | None, default: int = -1) -> ShownEvaluation:
    """An evaluation of a document.

    Args:
        document: With at least one evaluation.
        wanted: Its step, its label or its id; None takes the default.
        default: Index: -1 for the latest, -2 for the one before.

    Raises:
        TrackerError: There is none, or not as many.
    """
    evaluations = document.evaluations
    if wanted is None:
        if len(evaluations) < -default:
            raise TrackerError(f"{document.title}: there is no evaluation to compare with, only {len(evaluations)}")
        return evaluations[default]
    found = [each for each in evaluations if wanted in {each.id, each.label, str(each.step)}]
    if not found:
        there = ", ".join(each.label for each in evaluations)
        raise TrackerError(f"{document.title}: no evaluation {wanted!r}; there are {there}")
    return found[-1]


def side_by_side(first: Document, a: ShownEvaluation, second: Document, b: ShownEvaluation) -> Document:
    """One document with both evaluations, `a` the older one.

    Images are the same if their id, size and ground truth are: the matches of an evaluation point into its truth.

    Raises:
        TrackerError: The classes differ, or no image is in both.
    """
    if first.classes != second.classes:
        raise TrackerError(
            f"{first.title} and {second.title} cannot be compared: their classes differ "
            f"({len(first.classes)} and {len(second.classes)}: {_difference(first.classes, second.classes)})"
        )
    places = {image.id: index for index, image in enumerate(first.images)}
    images: list[ShownImage] = []
    pairs: list[tuple[int, int]] = []
    changed = 0
    for index, image in enumerate(second.images):
        place = places.get(image.id)
        if place is None:
            continue
        other = first.images[place]
        if (other.width, other.height, other.truth) != (image.width, image.height, image.truth):
            changed += 1
            continue
        images.append(image if image.src else msgspec.structs.replace(image, src=other.src))
        pairs.append((place, index))
    if not images:
        raise TrackerError(f"{first.title} and {second.title} have no image in common with the same ground truth")
    notes = [f"{changed} images are left out: their ground truth has changed in between"] if changed else []
    if alone := len(first.images) + len(second.images) - 2 * len(images) - 2 * changed:
        notes.append(f"{alone} images are in one of the two only, and left out")
    older = msgspec.structs.replace(a, id=f"{a.run}/{a.id}", images=[a.images[place] for place, _ in pairs])
    newer = msgspec.structs.replace(b, id=f"{b.run}/{b.id}", images=[b.images[place] for _, place in pairs])
    if older.run != newer.run:
        older.label, newer.label = f"{older.run}, {older.label}", f"{newer.run}, {newer.label}"
    return msgspec.structs.replace(
        second,
        title=f"{older.label} and {newer.label}",
        images=images,
        evaluations=[older, newer],
        notes=notes,
        comparing=True,
    )


def _difference(first: list[str], second: list[str]) -> str:
    only = [f"only one has {name!r}" for name in sorted(set(first) ^ set(second))[:3]]
    return ", ".join(only) or "their order"
