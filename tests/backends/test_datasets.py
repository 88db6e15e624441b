"""Data sets through the real clients: recorded by their runs, delivered by the uploader, read back by each backend."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

wandb = pytest.importorskip("wandb")
pytest.importorskip("mlflow")

from typer.testing import CliRunner

from tests.backends.wandb_feeding import KEY, TS, Feeder, clean_environment, info
from tests.backends.wandb_files import OfflineArtifact, offline_folders, read_run
from tests.backends.wandb_reports import rows_of
from tests.backends.wandb_server import WandbServer
from tests.mlflow_reading import MlflowRun
from unified_tracker import TrackerError
from unified_tracker._staging import Staging
from unified_tracker.backends import _wandb_dataset
from unified_tracker.backends._wandb_dataset import draft_dataset
from unified_tracker.backends._wandb_store import Store
from unified_tracker.backends._wandb_tracker import WandbTracker
from unified_tracker.cli import app
from unified_tracker.datasets import Created, Selection, create_dataset
from unified_tracker.predictions._page import read_page
from unified_tracker.records import Artifact

# A run that a test leaves open leaves threads of W&B's client behind, which complain at its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
SMALL = {"annotations.json", "dataset.json", "detectron2_metadata.json", "index.html"}


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no trace of W&B or MLflow."""
    clean_environment(monkeypatch, tmp_path)
    return tmp_path / "work"


def made(shapes: Path, tracker: str, **more: Any) -> Created:
    given = {"selection": Selection(select_fraction=0.5), **more}
    options = {"wandb": {"mode": "offline"}} if tracker == "wandb" else None
    return create_dataset(
        "shapes-train", shapes / "train.json", shapes / "train", tracker=tracker, options=options, **given
    )


# ---- MLflow --------------------------------------------------------------------------------------------------------


def test_mlflow_holds_the_data_set_its_page_and_a_table(shapes: Path, working: Path) -> None:
    created = made(shapes, "mlflow", project="shapes", aliases=["prod"])
    assert created.outcome == "created"
    run = MlflowRun(f"sqlite:///{working}/mlflow.db", "dataset-shapes-train")
    assert run.status == "FINISHED"
    files = run.files()
    (version,) = json.loads(files["shapes-train/versions.json"])
    assert (version["type"], version["aliases"]) == ("dataset", ["latest", "prod"])
    assert version["metadata"]["digest"] == created.card.digest
    artifact = {path.removeprefix("shapes-train/v0/"): content for path, content in files.items() if "/v0/" in path}
    names = [image["file_name"] for image in json.loads(artifact["annotations.json"])["images"]]
    assert set(artifact) == SMALL | {f"images/{name}" for name in names}
    for name in names:
        content = (shapes / "train" / name).read_bytes()
        assert artifact[f"images/{name}"] == content
        assert hashlib.sha256(content).hexdigest() == created.card.files[f"images/{name}"].sha256
    (working / "page.html").write_bytes(artifact["index.html"])
    assert len(read_page(working / "page.html").images) == len(names) == 8
    (table,) = json.loads(run.tags["mlflow.loggedArtifacts"])
    assert table["path"].startswith("tables/shapes-train/per_class")
    shown = json.loads(files[table["path"]])
    assert [row[:2] for row in shown["data"]] == [[name, count] for name, count in created.card.classes.items()]


def test_mlflow_gets_a_version_for_other_content_only(shapes: Path, working: Path) -> None:
    first = made(shapes, "mlflow", project="shapes")
    again = made(shapes, "mlflow", project="shapes")
    assert (again.outcome, again.versions) == ("unchanged", first.versions) == ("unchanged", {"mlflow": "v0"})
    second = made(shapes, "mlflow", project="shapes", selection=Selection(select_fraction=0.75), aliases=["prod"])
    assert (second.outcome, second.versions) == ("created", {"mlflow": "v1"})
    assert second.references == {"mlflow": "mlflow-artifact://shapes/shapes-train:v1"}
    files = MlflowRun(f"sqlite:///{working}/mlflow.db", "dataset-shapes-train").files()
    versions = json.loads(files["shapes-train/versions.json"])
    assert [version["metadata"]["images"] for version in versions] == [8, 12]
    assert [version["aliases"] for version in versions] == [[], ["latest", "prod"]]
    assert versions[1]["metadata"]["changes"]["images_added"] == 4
    assert {path for path in files if path.startswith("tables/")} == {
        f"tables/shapes-train/per_class/step_00000000{number}.json" for number in (0, 1)
    }
    back = made(shapes, "mlflow", project="shapes")
    assert back.versions == {"mlflow": "v0"} and back.changes is not None
    assert len(back.changes.images_removed) == 4


def test_diff_takes_references(shapes: Path, working: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFIED_TRACKER_CACHE", str(working / "cache"))
    made(shapes, "mlflow", project="shapes")
    made(shapes, "mlflow", project="shapes", selection=Selection(select_fraction=0.75))
    names = ["mlflow-artifact://shapes/shapes-train:v0", "mlflow-artifact://shapes/shapes-train:latest"]
    result = CliRunner().invoke(app, ["dataset", "diff", *names, "--json"])
    said = json.loads(result.stdout)
    assert len(said["changes"]["images_added"]) == 4 and said["changes"]["files_compared"]
    result = CliRunner().invoke(app, ["dataset", "diff", names[0], "mlflow-artifact://shapes/nothing:v0"])
    assert result.exit_code == 4 and "nothing" in result.stderr


@pytest.mark.parametrize("images", ["copy", "reference"])
def test_mlflow_gets_copies_or_references(shapes: Path, working: Path, images: Any) -> None:
    made(shapes, "mlflow", images=images)
    files = MlflowRun(f"sqlite:///{working}/mlflow.db", "dataset-shapes-train").files()
    pictures = [path for path in files if "/v0/images/" in path]
    if images == "copy":
        assert len(pictures) == 8
        return
    assert not pictures
    references = json.loads(files["shapes-train/v0/references.json"])
    assert len(references) == 8
    for path, said in references.items():
        content = Path(said["path"]).read_bytes()
        assert path == f"images/{Path(said['path']).name}" and len(content) == said["size"]
        assert hashlib.sha256(content).hexdigest() == said["sha256"]


def test_staged_links_are_gone_when_all_is_delivered(shapes: Path, working: Path) -> None:
    before = [path.stat().st_nlink for path in sorted((shapes / "train").iterdir())]
    made(shapes, "mlflow")
    run_dir = working / "unified-tracker" / "dataset-shapes-train"
    assert not [path for name in ("files", "links", "shared") for path in (run_dir / name).glob("*")]
    assert [path.stat().st_nlink for path in sorted((shapes / "train").iterdir())] == before


def test_an_image_that_is_written_over_meanwhile_is_told_and_nothing_is_stored(
    shapes: Path, working: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = working / "train"
    shutil.copytree(shapes / "train", folder)
    hold_all = Staging.hold_all

    def then_write(self: Staging, *given: Any) -> Any:
        held = hold_all(self, *given)
        with (folder / "00001.jpg").open("ab") as file:
            file.write(b"more")
        return held

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "_clone", lambda *_: False)
        patched.setattr(Staging, "hold_all", then_write)
        with pytest.raises(TrackerError, match=r"mlflow has not taken .*: images/00001\.jpg was written over"):
            create_dataset("shapes-train", shapes / "train.json", folder)
    made_again = create_dataset("shapes-train", shapes / "train.json", folder)
    assert (made_again.outcome, made_again.versions) == ("created", {"mlflow": "v0"})


# ---- W&B -----------------------------------------------------------------------------------------------------------


def offline(working: Path) -> list[OfflineArtifact]:
    (folder,) = offline_folders(working)
    return [each for each in read_run(folder).artifacts if each.name == "shapes-train"]


def test_wandb_holds_the_data_set_with_the_demos_table(shapes: Path, working: Path) -> None:
    created = made(shapes, "wandb", aliases=["prod"])
    (version,) = offline(working)
    assert (version.type, set(version.aliases)) == ("dataset", {"latest", "prod"})
    assert version.metadata["format"] == {"type": "coco_dataset_json"}
    assert version.metadata["digest"] == created.card.digest
    pictures = {path for path in version.files if path.startswith("images/")}
    extra = set(version.files) - SMALL - pictures
    assert len(pictures) == 8 and {path.partition("/")[0] for path in extra} == {"data_table.table.json", "media"}
    for path in pictures:
        assert version.files[path].read_bytes() == (shapes / "train" / Path(path).name).read_bytes()
    table = json.loads(version.files["data_table.table.json"].read_bytes())
    annotations = json.loads(version.files["annotations.json"].read_bytes())
    assert table["columns"] == [*annotations["images"][0], "image"]
    for row, image in zip(rows_of(table), annotations["images"], strict=True):
        cell = row.pop("image")
        assert row == image
        assert cell["path"] == f"images/{image['file_name']}"
        assert cell["sha256"] == created.card.files[cell["path"]].sha256
        mine = [each for each in annotations["annotations"] if each["image_id"] == image["id"]]
        boxes = cell["boxes"]["ground_truth"]
        assert [box["class_id"] for box in boxes] == [each["category_id"] for each in mine]
        for box, each in zip(boxes, mine, strict=True):
            x, y, width, height = each["bbox"]
            assert box["position"] == {"minX": x, "maxX": x + width, "minY": y, "maxY": y + height}


def test_wandb_offline_makes_no_new_version_of_the_same_content(shapes: Path, working: Path) -> None:
    made(shapes, "wandb")
    again = made(shapes, "wandb")
    assert (again.outcome, again.versions) == ("unchanged", {"wandb": ""})
    changed = made(shapes, "wandb", selection=Selection(select_fraction=0.75))
    assert changed.changes is not None and len(changed.changes.images_added) == 4
    versions = offline(working)
    assert [version.metadata["images"] for version in versions] == [8, 12]
    assert versions[1].metadata["changes"]["images_added"] == 4


def drafted(folder: Path, files: dict[str, Path], store: Path) -> dict[str, Path]:
    record = Artifact(TS, "odd", "dataset", ())
    return dict(draft_dataset(record, "odd", files, Store(store)).files)


def odd_files(folder: Path) -> dict[str, Path]:
    """Original category ids, a column of objects, an id that browsers round, an image of which there is no file."""
    Image.new("I;16", (20, 10)).save(folder / "deep.png")
    images = [
        {"id": 2**60, "file_name": "deep.png", "width": 20, "height": 10, "flickr": {"owner": "x"}},
        {"id": 5, "file_name": "elsewhere.png", "width": 20, "height": 10},
    ]
    boxes = [{"id": 1, "image_id": 2**60, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 1}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 90, "name": "toothbrush"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return {"annotations.json": folder / "annotations.json", "images/deep.png": folder / "deep.png"}


def test_the_client_reads_the_table_back(tmp_path: Path) -> None:
    files = drafted(tmp_path, odd_files(tmp_path), tmp_path / "store")

    class Downloaded:
        """An artifact whose files are here."""

        def get_entry(self, name: str) -> Any:
            return SimpleNamespace(download=lambda: str(files[name]))

        def get(self, name: str) -> Any:
            return wandb.Classes.from_json(json.loads(files[name].read_bytes()), self)

    table = wandb.Table.from_json(json.loads(files["data_table.table.json"].read_bytes()), Downloaded())
    assert table.columns == ["id", "file_name", "width", "height", "flickr", "image"]
    assert table.get_column("id") == [str(2**60), "5"]
    assert table.get_column("flickr") == ['{"owner":"x"}', None]
    first, second = table.get_column("image")
    assert first.image.size == (20, 10) and second is None
    assert [box["class_id"] for box in first._boxes["ground_truth"]._val] == [90]
    assert first._classes._class_set == [{"id": 90, "name": "toothbrush"}]


def test_somebody_elses_annotations_are_stored_without_a_table(tmp_path: Path) -> None:
    for content in ("{}", "[]", "no json", '{"images": [{"id": 1}], "annotations": [{}], "categories": []}'):
        (tmp_path / "annotations.json").write_text(content)
        given = {"annotations.json": tmp_path / "annotations.json"}
        assert drafted(tmp_path, given, tmp_path / "store") == given


def test_a_large_data_set_has_a_table_of_some_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wandb_dataset, "MOST_ROWS", 3)
    images = [{"id": number, "file_name": f"{number}.png", "width": 2, "height": 2} for number in range(10)]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    files = drafted(tmp_path, {"annotations.json": tmp_path / "annotations.json"}, tmp_path / "store")
    table = json.loads(files["data_table.table.json"].read_bytes())
    assert [row["id"] for row in rows_of(table)] == [0, 3, 6]


@pytest.fixture
def server(working: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    double = WandbServer(KEY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", double.url)
    yield double
    wandb.teardown(exit_code=1)
    double.close()


def test_wandb_online_commits_it_and_leaves_no_table_behind(
    server: WandbServer, tmp_path: Path, shapes: Path, working: Path
) -> None:
    files = {
        "annotations.json": shapes / "train.json",
        **{f"images/{path.name}": path for path in (shapes / "train").iterdir()},
    }
    (tmp_path / "run").mkdir()
    tracker = WandbTracker(info(tmp_path), tmp_path / "run", {"mode": "online"})
    tracker.open(info(tmp_path))
    entry = Feeder(tmp_path / "run").entry(Artifact(TS, "shapes-train", "dataset", ()))
    tracker.log_artifact(entry, files)
    tracker.log_artifact(entry, files)  # as after a lost answer
    tracker.close("FINISHED", TS)
    (version,) = server.committed("shapes-train")
    assert server.problems == []
    assert set(files) | {"data_table.table.json"} <= set(version.files)
    assert not list((tmp_path / "run" / "wandb" / "media").iterdir())
    named = json.loads(version.manifest)["contents"]
    for row in rows_of(json.loads(version.files["data_table.table.json"])):
        assert row["image"]["path"] in named
        digest = hashlib.md5(version.files[row["image"]["classes"]["path"]]).digest()
        assert row["image"]["classes"]["digest"] == base64.b64encode(digest).decode()


# ---- both ----------------------------------------------------------------------------------------------------------


def test_one_command_records_in_both(shapes: Path, working: Path) -> None:
    os.environ["WANDB_MODE"] = "offline"  # `clean_environment` takes it back
    words = ["--name", "shapes-train", "--json-file", shapes / "train.json", "--image-dir", shapes / "train"]
    more = ["--categories", "circle", "square", "--tracker", "mlflow,wandb", "--json"]
    result = CliRunner().invoke(app, ["dataset", "create", *map(str, words), *more])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["outcome"] == "created" and set(said["versions"]) == {"mlflow", "wandb"}
    (version,) = offline(working)
    files = MlflowRun(f"sqlite:///{working}/mlflow.db", "dataset-shapes-train").files("shapes-train/v0")
    for name in SMALL:
        assert version.files[name].read_bytes() == files[f"shapes-train/v0/{name}"]
    assert {
        each["category_id"] for each in json.loads(version.files["annotations.json"].read_bytes())["annotations"]
    } == {
        1,
        2,
    }
