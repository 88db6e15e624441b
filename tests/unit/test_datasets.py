"""Data sets: what is selected, what is refused, what is the same, and what has changed."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from unified_tracker._errors import ConfigurationError, TrackerError
from unified_tracker._reference import ArtifactReference
from unified_tracker._rundir import LaneState, RunDirectory, write_json
from unified_tracker._tracker import Address
from unified_tracker._versions import ArtifactVersion, FileInfo
from unified_tracker.cli import app
from unified_tracker.datasets import BrokenDatasetError, DatasetCard, Selection, create_dataset, shared_images
from unified_tracker.datasets._card import ANNOTATIONS, CARD, dataset_digest
from unified_tracker.datasets._changes import Content, compare, read_content
from unified_tracker.datasets._coco import Coco, canonical, read_coco, safe_name
from unified_tracker.datasets._commands import spread
from unified_tracker.datasets._flaws import Flaws
from unified_tracker.datasets._page import evenly
from unified_tracker.datasets._previous import KEPT, keep, previous
from unified_tracker.datasets._statistics import count
from unified_tracker.predictions._page import read_page

CATEGORIES = [
    {"id": 3, "name": "chair", "supercategory": "furniture"},
    {"id": 1, "name": "cat", "supercategory": "animal"},
    {"id": 7, "name": "couch", "supercategory": "furniture"},
]
Json = dict[str, Any]
quick = settings(deadline=None, max_examples=60)  # the machine may be busy


def image(number: int, **more: Any) -> Json:
    return {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30, **more}


def annotation(number: int, of: int, category: int = 3, **more: Any) -> Json:
    box = [2 * (number % 9), 3, 10, 8]
    return {"id": number, "image_id": of, "category_id": category, "bbox": box, "area": 80, "iscrowd": 0, **more}


def coco_json(images: list[Any], annotations: list[Any], categories: list[Any] | None = None, **more: Any) -> Json:
    return {"images": images, "annotations": annotations, "categories": categories or CATEGORIES, **more}


def some(count: int = 4) -> Json:
    """Images 1 to `count`, each with a chair."""
    return coco_json([image(n) for n in range(1, count + 1)], [annotation(n, n) for n in range(1, count + 1)])


class Place:
    """A COCO file beside a folder of images."""

    def __init__(self, folder: Path) -> None:
        self.json, self.images = folder / "given.json", folder / "given"
        self.images.mkdir()

    def write(self, content: Any, *, files: bool = True) -> Place:
        self.json.write_text(json.dumps(content))
        for each in content["images"] if files else ():
            self.picture(each["file_name"], each.get("width", 40), each.get("height", 30))
        return self

    def picture(self, name: str, width: int = 40, height: int = 30, grey: int | None = None) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), sum(name.encode()) % 256 if grey is None else grey).save(path)
        return path

    def read(self) -> tuple[Coco, dict[str, int]]:
        flaws = Flaws()
        coco = read_coco(self.json, flaws)
        return coco, {flaw.kind: flaw.count for flaw in flaws.listed()}


@pytest.fixture(autouse=True)
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client is there to be asked."""

    def open_store(backend: str, options: Any = None, *, checked: bool = False) -> Any:
        raise TrackerError("nobody answers")

    monkeypatch.setattr("unified_tracker.datasets._previous.open_store", open_store)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def run_directory(recording: Path, name: str = "chairs") -> Path:
    return recording / "unified-tracker" / f"dataset-{name}"


# ---- the selection -------------------------------------------------------------------------------------------------


def demo_selection(
    content: Json, names: list[str], supers: list[str], select: float, after: float
) -> tuple[list[int], list[int]]:
    """What W&B's demo takes, in its own words: ids of images and annotations."""
    chosen = [
        each["id"]
        for each in content["categories"]
        if (not names or each["name"] in names) and (not supers or each["supercategory"] in supers)
    ]
    having: set[int] = set()
    for number in chosen:
        having |= {each["image_id"] for each in content["annotations"] if each["category_id"] == number}
    start = int(after * len(having))
    images = sorted(having)[start : start + int(select * len(having))]
    annotations = [
        each["id"] for each in content["annotations"] if each["image_id"] in images and each["category_id"] in chosen
    ]
    return images, sorted(annotations)


data_sets = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([3, 1, 7])), max_size=60).map(
    lambda pairs: coco_json(
        [image(number) for number in range(30, 0, -1)],
        [annotation(number, of, category) for number, (of, category) in enumerate(pairs, 1)],
    )
)
fractions = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.2, 0.7, 0.8, 1.0]))


def parsed(content: Json) -> Coco:
    """As `read_coco` gives it, without a file."""
    parts = {part: sorted(canonical(content[part]), key=lambda each: each["id"]) for part in content}
    return Coco(parts["images"], parts["annotations"], parts["categories"])


@quick
@given(
    data_sets,
    st.lists(st.sampled_from(["chair", "cat", "couch"]), unique=True),
    st.lists(st.sampled_from(["furniture", "animal"]), unique=True),
    fractions,
    fractions,
)
def test_selects_what_the_demo_of_wandb_selects(
    content: Json, names: list[str], supers: list[str], select: float, after: float
) -> None:
    images, annotations = demo_selection(content, names, supers, select, after)
    selection = Selection(tuple(names), tuple(supers), select, after)
    if not images:
        with pytest.raises(TrackerError, match="nothing is selected"):
            selection.apply(parsed(content))
        return
    chosen = selection.apply(parsed(content))
    assert [each["id"] for each in chosen.images] == images
    assert [each["id"] for each in chosen.annotations] == annotations
    assert [each["id"] for each in chosen.categories] == [1, 3, 7]  # all of them, whatever was chosen


@quick
@given(st.integers(0, 5000), fractions)
def test_two_parts_that_follow_one_another_share_nothing(count: int, cut: float) -> None:
    first, second = Selection(select_fraction=cut), Selection(select_fraction=1 - cut, after_fraction=cut)
    numbers = list(range(count))
    assert not set(numbers[first.slice(count)]) & set(numbers[second.slice(count)])


def test_a_missing_file_moves_no_image_to_another_part(place: Place) -> None:
    place.write(some(10))
    coco = read_coco(place.json, Flaws())
    before = [each["id"] for each in Selection(select_fraction=0.5).apply(coco).images]
    (place.images / "2.png").unlink()
    assert [each["id"] for each in Selection(select_fraction=0.5).apply(coco).images] == before


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(("chiar",)), "no category 'chiar'; did you mean 'chair'"),
        (Selection((), ("vehicles",)), "no supercategory 'vehicles'; there are animal, furniture"),
    ],
)
def test_a_name_that_the_data_set_does_not_have_is_refused(selection: Selection, said: str) -> None:
    with pytest.raises(TrackerError, match=said):
        selection.apply(parsed(some()))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match="after_fraction must be 0 to 1"):
        Selection(after_fraction=value).check()


# ---- what is the same ----------------------------------------------------------------------------------------------


@quick
@given(data_sets, st.randoms(use_true_random=False))
def test_digest_does_not_depend_on_order_or_on_how_numbers_are_written(content: Json, chance: random.Random) -> None:
    other = json.loads(json.dumps(content))
    for part in other.values():
        chance.shuffle(part)
    for each in other["annotations"]:
        each["bbox"] = [float(number) for number in each["bbox"]]
    other = {part: [dict(reversed(each.items())) for each in entries] for part, entries in other.items()}
    assert parsed(other).encode() == parsed(content).encode()


@quick
@given(data_sets.filter(lambda content: bool(content["annotations"])), st.data())
def test_digest_depends_on_every_number(content: Json, data: st.DataObject) -> None:
    before = dataset_digest(parsed(content).encode(), {"images/1.png": "00"})
    each = data.draw(st.sampled_from(content["annotations"]))
    each["bbox"][data.draw(st.integers(0, 3))] += 1
    assert dataset_digest(parsed(content).encode(), {"images/1.png": "00"}) != before


def test_digest_depends_on_the_bytes_of_images_and_on_their_names() -> None:
    digests = {
        dataset_digest(b"{}", images)
        for images in ({"images/a": "00", "images/b": "01"}, {"images/a": "01", "images/b": "00"}, {"images/a": "00"})
    }
    assert len(digests) == 3


@pytest.mark.parametrize("images", ["copy", "reference"])
def test_digest_is_the_same_however_images_are_kept(recording: Path, place: Place, images: Any) -> None:
    place.write(some())
    linked = create_dataset("chairs", place.json, place.images, images="link")
    other = create_dataset("others", place.json, place.images, images=images)
    assert other.card.digest == linked.card.digest
    assert other.card.files == linked.card.files


# ---- what is broken ------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Json, dict[str, int], list[int]]] = {
    "degenerate box": (
        coco_json(
            [image(1), image(2)],
            [
                annotation(1, 1),
                annotation(2, 1, bbox=[1, 1, 0, 5]),
                annotation(3, 1, bbox=[1, 1, 5, -2]),
                annotation(4, 1, bbox=[float("nan"), 1, 5, 5]),
                annotation(5, 1, bbox=[1, 1, float("inf"), 5]),
                annotation(6, 1, bbox=[40, 1, 5, 5]),
                annotation(7, 1, bbox=[-6, 1, 5, 5]),
                annotation(8, 1, bbox=[1, 2, 3]),
                annotation(9, 1, bbox=None),
                annotation(10, 1, bbox=[35, 25, 20, 20]),  # over the edge: frameworks clip it
            ],
        ),
        {"degenerate box": 8},
        [1, 10],
    ),
    "unknown category": (
        coco_json([image(1)], [annotation(1, 1), annotation(2, 1, 99), annotation(3, 1, True)]),
        {"unknown category": 2},
        [1],
    ),
    "unknown image": (coco_json([image(1)], [annotation(1, 1), annotation(2, 5)]), {"unknown image": 1}, [1]),
    "duplicates": (
        coco_json(
            [image(1), image(1, file_name="other.png"), image(2, file_name="1.png"), image(3)],
            [annotation(1, 1), annotation(1, 3), annotation(2, 2), annotation(3, 3)],
            [*CATEGORIES, {"id": 3, "name": "stool"}],
        ),
        {"duplicate category id": 1, "duplicate image id": 1, "duplicate file name": 1, "duplicate annotation id": 1},
        [1, 3],
    ),
    "unsafe file name": (
        coco_json(
            [image(n, file_name=name) for n, name in enumerate(["../x.png", "/etc/x.png", "a\0b.png", "C:\\x.png"], 1)]
            + [image(9)],
            [annotation(1, 1), annotation(9, 9)],
        ),
        {"unsafe file name": 4},
        [9],
    ),
    "malformed entry": (
        coco_json(
            [image(1), "2.png", {"id": 3}, image(4, width=-1), image(5, height=None)],
            [annotation(1, 1), 7, {"image_id": 1}],
            [*CATEGORIES, {"id": "x", "name": "x"}],
        ),
        {"malformed entry": 7},
        [1],
    ),
    "not a number": (
        coco_json([image(1)], [annotation(1, 1), annotation(2, 1, segmentation=[[1, float("nan"), 2, 2, 3, 3]])]),
        {"not a number": 1},
        [1],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_left_out_and_counted(place: Place, kind: str) -> None:
    content, expected, kept = BROKEN[kind]
    coco, flaws = place.write(content, files=False).read()
    assert flaws == expected
    assert [each["id"] for each in coco.annotations] == kept


def test_no_licenses_is_no_flaw(place: Place) -> None:
    coco, flaws = place.write(some(), files=False).read()
    assert (coco.licenses, flaws) == ([], {})


def test_ids_that_a_tool_has_written_as_floats_are_ids(place: Place) -> None:
    content = coco_json([image(1.0)], [annotation(1.0, 1.0, 3.0)])  # type: ignore[arg-type]  # what is tested
    coco, flaws = place.write(content, files=False).read()
    assert not flaws
    assert [(each["id"], each["image_id"], each["category_id"]) for each in coco.annotations] == [(1, 1, 3)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[{}]", "it is a list, as COCO results are"),
        ("3", "holds int, not an object"),
        ('{"images": [], "shapes": []}', "no list of annotations and categories, but 'images', 'shapes'"),
        ('{"images": {}, "annotations": [], "categories": []}', "no list of images"),
    ],
)
def test_what_is_no_coco_at_all_is_said_to_be_none(place: Place, text: str, said: str) -> None:
    place.json.write_text(text)
    with pytest.raises(TrackerError, match=said):
        read_coco(place.json, Flaws())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["id", "image_id", "category_id", "bbox", "file_name", "width", "height", "name", "area"])
entries = st.lists(st.dictionaries(keys, json_values, max_size=7) | json_values, max_size=6)


@quick
@given(st.fixed_dictionaries({"images": entries, "annotations": entries, "categories": entries}))
def test_anything_in_the_lists_is_read_or_reported(tmp_path_factory: pytest.TempPathFactory, content: Json) -> None:
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_text(json.dumps(content))
    coco = read_coco(path, Flaws())
    assert msgspec.json.decode(coco.encode())["images"] == coco.images
    count(Coco([{**each, "width": 1, "height": 1} for each in coco.images], coco.annotations, coco.categories))


@quick
@given(st.text(max_size=20) | st.lists(st.sampled_from(["..", ".", "a", "", "b.png"])).map("/".join))
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    safe = safe_name(name)
    if safe is not None:
        inside = os.path.normpath(os.path.join("/artifact/images", safe))
        assert inside.startswith("/artifact/images/") and inside == f"/artifact/images/{safe}"


def test_folders_in_file_names_stay() -> None:
    assert [safe_name(name) for name in ("train/a/1.png", "./x.png", "a//b.png")] == [
        "train/a/1.png",
        "x.png",
        "a/b.png",
    ]


def test_image_files_that_cannot_be_used_are_left_out_with_their_annotations(recording: Path, place: Place) -> None:
    place.write(some(7))
    (place.images / "1.png").unlink()
    (place.images / "2.png").write_bytes(b"no picture")
    whole = (place.images / "3.png").read_bytes()
    (place.images / "3.png").write_bytes(whole[: len(whole) // 2])
    place.picture("4.png", 41, 30)
    (place.images / "5.png").unlink()
    (place.images / "5.png").mkdir()
    made = create_dataset("chairs", place.json, place.images)
    counted = {flaw.kind: flaw.count for flaw in made.flaws}
    assert counted == {"missing image": 1, "unreadable image": 3, "size differs": 1}
    assert list(made.card.files) == ["images/6.png", "images/7.png"]
    assert made.card.annotations == 2
    examples = [example for flaw in made.flaws for example in flaw.examples]
    assert "image 4, '4.png': 40 x 30 pixels are said, it has 41 x 30" in examples


def test_size_is_taken_from_the_file_where_nobody_says_it(recording: Path, place: Place) -> None:
    content = some(1)
    del content["images"][0]["width"], content["images"][0]["height"]
    place.write(content)
    made = create_dataset("chairs", place.json, place.images)
    assert not made.flaws and made.card.statistics.image_sizes == {"40x30": 1}


@pytest.mark.parametrize("width", [40, 30])
def test_a_picture_may_be_turned_by_its_own_word(recording: Path, place: Place, width: int) -> None:
    place.write(coco_json([image(1, file_name="1.jpg", width=width, height=70 - width)], [annotation(1, 1)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(place.images / "1.jpg", exif=exif)
    assert not create_dataset("chairs", place.json, place.images).flaws


def test_strictness_refuses_and_records_nothing(recording: Path, place: Place) -> None:
    place.write(some())
    (place.images / "1.png").unlink()
    with pytest.raises(BrokenDatasetError, match=r"missing image \(1\)") as caught:
        create_dataset("chairs", place.json, place.images, strict=True)
    assert [flaw.count for flaw in caught.value.flaws] == [1]
    assert not run_directory(recording).exists()


def test_a_data_set_without_one_good_image_is_refused(recording: Path, place: Place) -> None:
    place.write(some(), files=False)
    with pytest.raises(TrackerError, match=r"no image of the data set can be used.*1\.png is not there"):
        create_dataset("chairs", place.json, place.images)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "ä", "x" * 101])
def test_a_name_that_cannot_stand_in_a_reference_is_refused(place: Place, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a data set"):
        create_dataset(name, place.json, place.images)


# ---- what is recorded ----------------------------------------------------------------------------------------------


def recorded(run_dir: Path) -> tuple[Any, dict[str, Path]]:
    """The last data set in a run directory's journal: its record, and where the bytes of each of its files are."""
    from unified_tracker._journal import JournalReader
    from unified_tracker.records import Artifact

    reader, records = JournalReader(run_dir / "journal"), []
    while entries := reader.read(final=True):
        records += [entry.record for entry in entries]
    found = [record for record in records if isinstance(record, Artifact)][-1]
    return found, {file.path: run_dir / file.staged for file in found.files}


@pytest.mark.parametrize("images", ["link", "copy", "reference"])
def test_an_artifact_holds_what_detectron2_and_mmdetection_read(recording: Path, place: Place, images: Any) -> None:
    content = some(2)
    content["images"][0]["file_name"] = "sub/1.png"
    place.write(content)
    made = create_dataset("chairs", place.json, place.images, images=images, aliases=["prod"])
    record, files = recorded(run_directory(recording))
    pictures = set() if images == "reference" else {"images/sub/1.png", "images/2.png"}
    small = {"annotations.json", "dataset.json", "detectron2_metadata.json", "index.html"}
    references = {"references.json"} if images == "reference" else set()
    assert set(files) == small | references | pictures
    assert (record.name, record.type, record.aliases) == ("chairs", "dataset", ("prod",))
    assert record.metadata["format"] == {"type": "coco_dataset_json"}
    assert record.metadata["digest"] == made.card.digest
    assert record.metadata["classes"] == ["cat", "chair", "couch"]
    kept = json.loads(files["annotations.json"].read_bytes())
    assert [each["file_name"] for each in kept["images"]] == ["sub/1.png", "2.png"]
    assert json.loads(files["detectron2_metadata.json"].read_bytes()) == {
        "thing_classes": ["cat", "chair", "couch"],
        "thing_dataset_id_to_contiguous_id": {"1": 0, "3": 1, "7": 2},
    }
    card = DatasetCard.decode(files["dataset.json"].read_bytes())
    assert card == made.card
    assert card.digest == dataset_digest(
        files["annotations.json"].read_bytes(), {path: file.sha256 for path, file in card.files.items()}
    )
    for path in pictures:
        assert files[path].read_bytes() == (place.images / path.removeprefix("images/")).read_bytes()
    if references:
        said = json.loads(files["references.json"].read_bytes())
        assert {path: each["path"] for path, each in said.items()} == {
            f"images/{name}": str((place.images / name).absolute()) for name in ("2.png", "sub/1.png")
        }
        assert {path: each["sha256"] for path, each in said.items()} == {
            path: each.sha256 for path, each in card.files.items()
        }


def test_links_take_no_room_and_survive_deletion(recording: Path, place: Place) -> None:
    place.write(some(2))
    original = place.images / "1.png"
    content, inode = original.read_bytes(), original.stat().st_ino
    create_dataset("chairs", place.json, place.images)
    _, files = recorded(run_directory(recording))
    staged = files["images/1.png"]
    if staged.parent.name == "shared":  # a file system without clones
        assert staged.stat().st_ino == inode
    original.unlink()
    assert staged.read_bytes() == content


def test_statistics_count_by_class_and_by_cocos_sizes(place: Place) -> None:
    content = coco_json(
        [image(1), image(2), image(3)],
        [
            annotation(1, 1, 3, area=32**2 - 1),
            annotation(2, 1, 3, area=32**2),
            annotation(3, 2, 7, area=96**2),
            annotation(4, 2, 7, area=0, iscrowd=1),  # no area: the box has 80 pixels
        ],
    )
    coco, _ = place.write(content, files=False).read()
    found = count(coco)
    assert (found.images, found.annotations, found.crowd, found.unannotated) == (3, 4, 1, 1)
    assert found.sizes == {"small": 2, "medium": 1, "large": 1}
    assert found.class_rows() == [
        ["cat", 0, 0, 0, 0, 0, 0],
        ["chair", 2, 1, 1, 1, 0, 0],
        ["couch", 2, 1, 1, 0, 1, 1],
    ]
    assert found.image_sizes == {"40x30": 3}


def test_the_page_shows_what_is_true(recording: Path, place: Place) -> None:
    content = some(2)
    content["annotations"][0] |= {"segmentation": [[2, 3, 12, 3, 12, 11]], "iscrowd": 1}
    content["annotations"].append(annotation(9, 1, 7, segmentation=[]))
    content["annotations"][1]["segmentation"] = {"size": [1, 1], "counts": "nonsense"}
    place.write(content)
    create_dataset("chairs", place.json, place.images)
    _, files = recorded(run_directory(recording))
    document = read_page(files["index.html"])
    assert not document.evaluations
    assert [shown.name for shown in document.images] == ["1.png", "2.png"]
    assert all(shown.src.startswith("data:image/webp;base64,") for shown in document.images)
    first, second = (shown.truth["instances"] for shown in document.images if shown.truth)
    assert (first.l, first.c, len(first.m)) == ([1, 2], [0], 2)
    assert (second.l, second.b, second.m) == ([1], [4, 3, 14, 11], [])
    assert document.tables[0].rows[1] == ["chair", 2, 2, 2, 0, 0, 1]


@quick
@given(st.integers(1, 2000), st.integers(1, 300))
def test_images_of_a_page_are_evenly_chosen(count: int, most: int) -> None:
    chosen = [each["id"] for each in evenly([image(n) for n in range(count)], most)]
    assert len(chosen) == min(count, most) and chosen[0] == 0 and chosen == sorted(set(chosen))
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not steps or max(steps) - min(steps) <= 1


def test_with_tracking_off_nothing_is_recorded(recording: Path, place: Place) -> None:
    made = create_dataset("chairs", place.write(some()).json, place.images, tracker="off")
    assert made.outcome == "off" and not (recording / "unified-tracker").exists()


# ---- the version before --------------------------------------------------------------------------------------------


class FakeStore:
    """What a backend holds: folders, the last one is the latest version."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.downloads: list[str] = []
        self.asked: list[ArtifactReference] = []

    def take(self, run_dir: Path, target: Path) -> None:
        """What was recorded becomes the latest version."""
        target.mkdir()
        record, files = recorded(run_dir)
        (target / "metadata").write_bytes(msgspec.json.encode(record.metadata))
        for path, source in files.items():
            if not path.startswith("images/"):
                (target / path).write_bytes(source.read_bytes())
        self.folders.append(target)

    def find(self, reference: ArtifactReference) -> ArtifactVersion:
        self.asked.append(reference)
        if not self.folders:
            raise TrackerError("there is none")
        return self._version(len(self.folders) - 1)

    def _version(self, number: int) -> ArtifactVersion:
        metadata = msgspec.json.decode((self.folders[number] / "metadata").read_bytes())
        return ArtifactVersion("mlflow", "p", "chairs", f"v{number}", "dataset", "d", "u", metadata=metadata)

    def versions(self, **asked: str) -> Any:
        assert asked == {"type": "dataset", "project": "p", "name": "chairs"}
        return map(self._version, range(len(self.folders)))

    def download(self, version: ArtifactVersion, path: str, target: Path) -> None:
        self.downloads.append(path)
        source = self.folders[-1] / path
        if not source.exists():
            raise TrackerError(f"no {path}")
        target.write_bytes(source.read_bytes())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    fake = FakeStore()

    def open_store(backend: str, options: Mapping[str, Any] | None = None, *, checked: bool = False) -> Any:
        assert (backend, checked) == ("mlflow", True)
        return fake

    monkeypatch.setattr("unified_tracker.datasets._previous.open_store", open_store)
    return fake


def test_the_same_content_makes_no_new_version(recording: Path, place: Place, store: FakeStore, tmp_path: Path) -> None:
    place.write(some())
    create_dataset("chairs", place.json, place.images, project="home")
    assert store.asked[0] == ArtifactReference("mlflow", "home", "chairs", "latest")
    store.take(run_directory(recording), tmp_path / "v0")
    content = some()
    content["annotations"].reverse()
    place.write({"licenses": [], "info": {"date_created": "later"}, **content}, files=False)
    again = create_dataset("chairs", place.json, place.images, project="home")
    assert (again.outcome, again.versions, again.run_dir) == ("unchanged", {"mlflow": "v0"}, "")
    assert again.references == {"mlflow": "mlflow-artifact://p/chairs:v0"}
    assert not store.downloads


def test_changed_content_makes_one_and_says_what_has_changed(
    recording: Path, place: Place, store: FakeStore, tmp_path: Path
) -> None:
    place.write(some())
    assert create_dataset("chairs", place.json, place.images).changes is None
    store.take(run_directory(recording), tmp_path / "v0")
    content = some(5)
    del content["images"][0], content["annotations"][0]
    content["annotations"][0]["bbox"] = [0, 0, 5, 5]
    content["annotations"].append(annotation(9, 2, 7))
    place.write(content)
    place.picture("3.png", grey=255)
    made = create_dataset("chairs", place.json, place.images)
    record, _ = recorded(run_directory(recording))
    expected = dict.fromkeys(record.metadata["changes"], 0)
    expected |= {"images_added": 1, "images_removed": 1, "images_changed": 1}
    expected |= {"annotations_added": 2, "annotations_removed": 1, "annotations_changed": 1}
    assert made.changes is not None and made.changes.counts() == expected == record.metadata["changes"]
    assert (made.changes.images_added, made.changes.images_changed) == (["5.png"], ["3.png"])


def test_content_of_an_older_version_leaves_what_is_said_about_that_one(
    recording: Path, place: Place, store: FakeStore, tmp_path: Path
) -> None:
    for number, images in enumerate((4, 5)):
        create_dataset("chairs", place.write(some(images)).json, place.images)
        store.take(run_directory(recording), tmp_path / f"v{number}")
    again = create_dataset("chairs", place.write(some(4)).json, place.images)
    assert again.changes is not None and again.changes.images_removed == ["5.png"]
    assert "changes" not in recorded(run_directory(recording))[0].metadata


def test_more_images_than_a_record_holds_are_refused_before_any_is_staged(
    recording: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unified_tracker.datasets._create.MOST_BYTES", 200)
    place.write(some())
    with pytest.raises(TrackerError, match="4 images are too many for one record; use images='reference'"):
        create_dataset("chairs", place.json, place.images)
    assert not run_directory(recording).exists()
    assert create_dataset("chairs", place.json, place.images, images="reference").outcome == "pending"


def test_a_version_that_somebody_else_has_made_is_compared_as_far_as_it_goes(
    recording: Path, place: Place, store: FakeStore, tmp_path: Path
) -> None:
    place.write(some())
    create_dataset("chairs", place.json, place.images)
    store.take(run_directory(recording), tmp_path / "v0")
    (tmp_path / "v0" / "metadata").write_text("{}")
    (tmp_path / "v0" / CARD).unlink()
    made = create_dataset("chairs", place.json, place.images)
    assert made.changes is not None and not made.changes and not made.changes.files_compared
    (tmp_path / "v0" / ANNOTATIONS).write_text("garbage")
    assert create_dataset("chairs", place.json, place.images).changes is None


def test_an_alias_moves_to_content_that_is_there(
    recording: Path, place: Place, store: FakeStore, tmp_path: Path
) -> None:
    place.write(some())
    create_dataset("chairs", place.json, place.images)
    store.take(run_directory(recording), tmp_path / "v0")
    first, _ = recorded(run_directory(recording))
    create_dataset("chairs", place.json, place.images, aliases=["prod"])
    second, _ = recorded(run_directory(recording))
    assert second.aliases == ("prod",) and second.metadata == first.metadata


def test_what_records_offline_remembers_in_the_run_directory(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run"
    folder.mkdir()
    run_dir = RunDirectory(tmp_path / "run")
    (tmp_path / "run" / "lanes").mkdir(parents=True)
    coco = parsed(some(1))
    card = DatasetCard.of("chairs", Coco([image(1)], coco.annotations, coco.categories), {}, Selection())

    def found() -> Any:
        return previous("wandb", {"mode": "offline"}, None, "chairs", run_dir.path)

    assert found() is None
    keep(run_dir.path, coco.encode(), card.encode())
    assert found() is None  # nothing was ever written
    write_json(run_dir.lanes / "wandb.json", LaneState("wandb", 1, address=Address("x", str(folder))))
    assert found().digest == card.digest and found().folder(tmp_path) == run_dir.path / KEPT
    folder.rmdir()
    assert found() is None  # what was recorded has been removed


# ---- changes -------------------------------------------------------------------------------------------------------


@quick
@given(data_sets, st.integers(100, 1000))
def test_new_ids_alone_are_no_change(content: Json, by: int) -> None:
    other = json.loads(json.dumps(content))
    for each in other["images"]:
        each["id"] += by
    for number, each in enumerate(reversed(other["annotations"])):
        each["image_id"] += by
        each["id"] = number
    assert not compare(Content(parsed(content)), Content(parsed(other)))


@quick
@given(data_sets, data_sets)
def test_changes_add_up(before: Json, after: Json) -> None:
    a, b = Content(parsed(before)), Content(parsed(after))
    there, back = compare(a, b), compare(b, a)
    assert len(after["annotations"]) - len(before["annotations"]) == there.annotations_added - there.annotations_removed
    assert (there.annotations_added, there.annotations_changed) == (back.annotations_removed, back.annotations_changed)
    assert not compare(a, a)


def test_categories_that_change_are_named(place: Place) -> None:
    after = some()
    after["categories"] = [
        {"id": 3, "name": "chair", "supercategory": "seats"},
        {"id": 8, "name": "cat", "supercategory": "animal"},
        {"id": 9, "name": "dog"},
    ]
    found = compare(Content(parsed(some())), Content(parsed(after)))
    assert (found.categories_added, found.categories_removed) == (["dog"], ["couch"])
    assert found.categories_changed == ["cat", "chair"]


# ---- leakage -------------------------------------------------------------------------------------------------------


def test_images_in_both_data_sets_are_found_by_their_bytes() -> None:
    train = {"images/a.png": FileInfo(1, "sha256:00"), "images/b.png": FileInfo(1, "sha256:01")}
    val = {"images/x.png": {"sha256": "01"}, "images/y.png": {"sha256": "02"}, "annotations.json": {"sha256": "00"}}
    assert shared_images(train, val) == ["b.png"]
    assert shared_images({"images/a": FileInfo(1, "md5:01"), "images/b": FileInfo()}, val) == []


# ---- the command line ----------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.sampled_from(["--categories", "--supercategories", "--name", "a", "b", "--strict"])))
def test_values_of_an_option_may_stand_together(arguments: list[str]) -> None:
    result = spread(arguments)
    assert [each for each in result if not each.startswith("--")] == [
        each for each in arguments if not each.startswith("--")
    ]
    assert spread(result) == result


def test_the_spelling_of_the_demo_is_taken() -> None:
    given = ["--name", "x", "--json_file", "a", "--categories", "a", "b c", "--select_fraction=0.2", "--strict"]
    assert spread(given) == [
        *("--name", "x", "--json-file", "a", "--categories", "a", "--categories", "b c"),
        *("--select-fraction=0.2", "--strict"),
    ]


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ["dataset", *map(str, words)])


def created(place: Place, *words: object) -> Any:
    return command("create", "--name", "chairs", "--json-file", place.json, "--image-dir", place.images, *words)


def test_create_says_what_it_has_made(recording: Path, place: Place) -> None:
    content = some(10)
    content["annotations"] += [annotation(30 + n, n, 1) for n in range(3, 9)]
    place.write(content)
    result = created(place, "--categories", "cat", "couch", "--select-fraction", "0.5", "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 2  # nothing delivers here
    assert (said["outcome"], said["images"], said["annotations"]) == ("pending", 3, 3)
    assert said["classes"] == {"cat": 3, "chair": 0, "couch": 0}
    assert said["selection"]["categories"] == ["cat", "couch"]
    assert "unified-tracker sync" in created(place).stdout


def test_create_reports_what_is_broken_on_the_error_stream_and_as_data(recording: Path, place: Place) -> None:
    place.write(some(9))
    for number in range(1, 8):
        (place.images / f"{number}.png").unlink()
    result = created(place, "--json")
    assert json.loads(result.stdout)["flaws"][0]["count"] == 7
    assert "7 entries are broken and left out" in result.stderr
    assert "missing image: 7" in result.stderr and "image 1, '1.png'" in result.stderr and "and 2 more" in result.stderr


def test_create_refuses_what_is_broken_if_it_is_strict(recording: Path, place: Place) -> None:
    place.write(some())
    (place.images / "1.png").unlink()
    result = created(place, "--strict", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["outcome"] == "refused"
    assert "nothing is recorded" in result.stderr
    assert not run_directory(recording).exists()


def test_create_tells_what_is_wrong_in_one_line(recording: Path, place: Place) -> None:
    place.json.write_text("[]")
    result = created(place)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "is no COCO data set" in result.stderr
    assert created(place, "--tracker", "mlfow").exit_code == 1


def test_diff_compares_files_and_folders(place: Place, tmp_path: Path) -> None:
    place.write(some(), files=False)
    other = tmp_path / "folder"
    other.mkdir()
    content = some(6)
    content["images"][5]["file_name"] = "evil\x1b[31m.png"
    (other / "annotations.json").write_text(json.dumps(content))
    result = command("diff", place.json, other, "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 0 and not said["same"]
    assert said["changes"]["images_added"] == ["5.png", "evil\x1b[31m.png"]
    assert said["changes"]["classes"] == {"chair": {"added": 2, "removed": 0, "changed": 0}}
    text = command("diff", place.json, other).stdout
    assert "images: 2 added" in text and "image files are not compared" in text and "\x1b" not in text
    assert "nothing has changed" in command("diff", place.json, place.json).stdout


def test_diff_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    for target, said in ((tmp_path / "none", "is neither a file nor a folder"), (tmp_path, "holds no data set")):
        result = command("diff", target, target)
        assert result.exit_code == 4 and said in result.stderr


def test_what_was_recorded_is_read_back(recording: Path, place: Place, store: FakeStore, tmp_path: Path) -> None:
    place.write(some())
    made = create_dataset("chairs", place.json, place.images)
    store.take(run_directory(recording), tmp_path / "v0")
    content = read_content(tmp_path / "v0")
    assert content.files == made.card.files and len(content.coco.annotations) == 4
