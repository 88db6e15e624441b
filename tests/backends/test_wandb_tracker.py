"""The W&B tracker against the real wandb client, offline; what it wrote is read back from W&B's own files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wandb")

from tests.backends.wandb_feeding import TS, Feeder, clean_environment, info
from tests.backends.wandb_files import OfflineRun, offline_folders, read_run
from unified_tracker._errors import RejectedError, TransientError
from unified_tracker._tracker import RunInfo
from unified_tracker.backends._wandb_tracker import WandbTracker
from unified_tracker.records import Metrics, Params, Tags


@pytest.fixture(autouse=True)
def nothing_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    home = clean_environment(monkeypatch, tmp_path)
    yield
    assert list(home.rglob("*")) == [], "wandb wrote into the home folder"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, run_dir: Path) -> Callable[..., WandbTracker]:
    def started(run: RunInfo | None = None, **options: Any) -> WandbTracker:
        run = run or info(tmp_path)
        tracker = WandbTracker(run, run_dir, {"mode": "offline", **options})
        tracker.address = tracker.open(run)  # type: ignore[attr-defined]
        return tracker

    return started


def only_run(tmp_path: Path) -> OfflineRun:
    (folder,) = offline_folders(tmp_path / "work")
    return read_run(folder)


# ---- rows ------------------------------------------------------------------------------------------------------


def test_rows_arrive_in_order_with_the_training_s_step_as_axis(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    tracker.log_metrics([feed.metrics(10, train__loss=0.5, lr=1), feed.metrics(20, train__loss=math.nan)])
    tracker.log_metrics([feed.metrics(20, train__loss=math.inf), feed.metrics(5, train__loss=-math.inf)])
    tracker.log_metrics([feed.metrics(None, train__loss=2**62)])
    assert tracker.held() == 0
    tracker.close("FINISHED", TS)
    run = only_run(tmp_path)
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert run.column("trainer/step") == [10, 20, 20, 5, 5]  # a row without a step stands at the last one
    losses = run.column("train/loss")
    assert (losses[0], losses[2:]) == (0.5, [math.inf, -math.inf, 2**62])
    assert math.isnan(losses[1])
    assert {row["_timestamp"] for row in run.rows} == {TS / 1000}
    assert run.axes == {"trainer/step": "", "*": "trainer/step"}
    assert tracker.held() == (1 << 40) + 5


def test_odd_numbers_are_stored_as_the_table_says(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    values = [-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 2**63 - 1, -(2**63), float(2**70)]
    steps = [2**63 - 1, -(2**63), 0, 7, 7, 3, None]
    tracker.log_metrics([feed.metrics(step, x=value) for step, value in zip(steps, values, strict=True)])
    tracker.close("FINISHED", TS)
    run = only_run(tmp_path)
    assert run.column("x") == [0, *values[1:]]
    assert run.column("trainer/step") == [*steps[:-1], 3]


def test_names_that_wandb_refuses_are_mapped_and_kept(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    odd = {"": 1.0, "_step": 2.0, "_x": 3.0, "x_x": 4.0, "trainer/step": 5.0, "\ud800": 6.0, "ok.name/ä b": 7.0}
    tracker.log_metrics([feed.entry(Metrics(TS, 1, odd))])
    tracker.close("FINISHED", TS)
    run = only_run(tmp_path)
    (row,) = run.rows
    assert row["trainer/step"] == 1
    originals = {mapped: name for mapped, name in run.config["unified_tracker/names"].items() if mapped in row}
    assert set(originals.values()) == {"", "_step", "_x", "trainer/step", "?"}
    assert row["ok.name/ä b"] == 7 and row["x_x"] == 4
    assert {originals[mapped]: row[mapped] for mapped in originals} == {
        "": 1,
        "_step": 2,
        "_x": 3,
        "trainer/step": 5,
        "?": 6,
    }


def test_a_batch_that_comes_again_is_not_logged_twice(
    start: Any, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, feed = start(), Feeder(run_dir)
    batch = [feed.metrics(step, loss=step) for step in range(4)]
    log, calls = tracker._run.log, itertools.count()

    def failing(*args: Any, **kwargs: Any) -> None:
        if next(calls) == 2:
            raise OSError("disk full")
        log(*args, **kwargs)

    tracker._run.log = failing
    with pytest.raises(TransientError, match="disk full"):
        tracker.log_metrics(batch)
    tracker.log_metrics(batch)
    tracker.close("FINISHED", TS)
    assert only_run(tmp_path).column("loss") == [0, 1, 2, 3]


# ---- configuration, tags ---------------------------------------------------------------------------------------


def test_configuration_is_nested_merged_and_remembers_changes(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    first = {"model": {"depth": 50, "fpn": {"out": 256}}, "optimizer.lr": 0.1, "nan": math.nan, "inf": [math.inf]}
    first["none"] = None
    tracker.log_params([feed.entry(Params(TS, first))])
    again = {"model": {"depth": 101, "name": "x"}, "optimizer": {"momentum": 0.9}}
    tracker.log_params([feed.entry(Params(TS + 1, again)), feed.entry(Params(TS + 2, {"-dash-": 1, "dash": 2}))])
    tracker.close("FINISHED", TS)
    config = only_run(tmp_path).config
    assert config["model"] == {"depth": 101, "fpn": {"out": 256}, "name": "x"}
    assert config["optimizer"] == {"lr": 0.1, "momentum": 0.9}
    assert (config["nan"], config["inf"], config["none"]) == ("NaN", ["Infinity"], None)
    assert config["unified_tracker/changed_params"] == [["model.depth", 50, 101, TS + 1]]
    (dashed,) = (mapped for mapped, name in config["unified_tracker/names"].items() if name == "-dash-")
    assert (config[dashed], config["dash"]) == (1, 2)


def test_artifact_uris_in_the_configuration_are_not_fetched(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    uri = "wandb-artifact://entity/project/name:best"
    values = {"load_from": uri, "model": {"init": uri, "all": [uri]}, "odd": {"_type": "artifactVersion", "id": "x"}}
    tracker.log_params([feed.entry(Params(TS, values))])
    tracker.close("FINISHED", TS)
    config = only_run(tmp_path).config
    assert config["load_from"] == f"<{uri}>"
    assert config["model"] == {"init": f"<{uri}>", "all": [f"<{uri}>"]}


def test_tags_become_words_and_configuration(
    start: Any, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, feed = start(tags="mine, other"), Feeder(run_dir)
    tracker.set_tags([feed.entry(Tags(TS, {"flag": "true", "empty": "", "long": "x" * 70, "mlflow.user": "me"}))])
    tracker.set_tags([feed.entry(Tags(TS, {"stage": "prod", "unified_tracker.delivery": "complete"}))])
    tracker.close("FINISHED", TS)
    run = only_run(tmp_path)
    assert run.tags == ["mine", "other", "stage:prod", "flag", "empty"]
    assert run.config["tags/stage"] == "prod" and run.config["tags/long"] == "x" * 70
    assert run.config["unified_tracker/delivery"] == "complete"


# ---- media -----------------------------------------------------------------------------------------------------


def test_media_of_every_form_stand_at_their_step(start: Any, run_dir: Path, tmp_path: Path) -> None:
    import io

    from PIL import Image

    tracker, feed = start(), Feeder(run_dir)
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    array, png = io.BytesIO(), io.BytesIO()
    np.save(array, picture)
    Image.fromarray(picture).save(png, "png")
    table = json.dumps({"columns": ["class", "AP"], "data": [["a", 0.5], ["b", None], ["c", "n/a"]]}).encode()
    tracker.log_media(*feed.media("array", "val/sample", 7, array.getvalue(), "a.npy", "caption"))
    tracker.log_media(*feed.media("figure", "fig", 8, png.getvalue(), "f.png"))
    tracker.log_media(*feed.media("figure", "plot", 9, b"<div>plot</div>", "f.html"))
    tracker.log_media(*feed.media("text", "note", 10, b"<script>alert(1)</script>", "t.txt"))
    tracker.log_media(*feed.media("table", "val/per_class", 11, table, "t.json"))
    tracker.close("FINISHED", TS)
    (folder,) = offline_folders(tmp_path / "work")
    run = read_run(folder)
    assert run.column("trainer/step") == [7, 8, 9, 10, 11]

    def content(name: str) -> tuple[dict[str, Any], bytes]:
        (value,) = run.column(name)
        assert value["path"] in run.saved
        return value, (folder / "files" / value["path"]).read_bytes()

    value, stored = content("val/sample")
    assert value["_type"] == "image-file" and value["caption"] == "caption"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), picture)
    assert content("fig")[1] == png.getvalue()
    assert b"<div>plot</div>" in content("plot")[1]
    assert b"&lt;script&gt;" in content("note")[1] and b"<script>" not in content("note")[1]
    value, stored = content("val/per_class")
    assert value["_type"] == "table-file"
    assert json.loads(stored)["data"] == [["a", 0.5], ["b", None], ["c", "n/a"]]
    (version,) = run.artifacts
    assert all(path.is_relative_to(run_dir) for path in version.files.values()), "staged outside the run directory"


def test_media_that_cannot_be_read_is_rejected_and_the_rest_arrives(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    with pytest.raises(RejectedError):
        tracker.log_media(*feed.media("array", "bad", 1, b"no array", "b.npy"))
    with pytest.raises(RejectedError):
        tracker.log_media(*feed.media("table", "bad", 1, b"{", "b.json"))
    tracker.log_metrics([feed.metrics(2, loss=1)])
    tracker.close("FINISHED", TS)
    assert only_run(tmp_path).column("loss") == [1]


# ---- artifacts -------------------------------------------------------------------------------------------------


def test_artifacts_carry_aliases_metadata_and_point_into_the_run_directory(
    start: Any, run_dir: Path, tmp_path: Path
) -> None:
    tracker, feed = start(), Feeder(run_dir)
    tracker.log_artifact(
        *feed.artifact(
            "run-run0abcd-model",
            {"deep/model.pth": b"weights"},
            aliases=("best-bbox.AP", "best-val/bbox:AP", "latest", "v3"),
            metadata={"framework": "mmdet", "step": "theirs"},
            metrics={"val/AP": 0.5, "nan": math.nan},
            step=100,
            epoch=1.5,
        )
    )
    tracker.log_artifact(*feed.artifact("odd name/ä", {"a.txt": b"a"}, "wandb-own"))
    tracker.close("FINISHED", TS)
    model, odd = only_run(tmp_path).artifacts
    assert (model.name, model.type) == ("run-run0abcd-model", "model")
    assert set(model.aliases) == {"latest", "best-bbox.AP", "best-val.bbox-AP", "alias-v3"}
    assert model.metadata == {
        "framework": "mmdet",
        "step": "theirs",
        "unified_tracker/step": 100,
        "epoch": 1.5,
        "metrics": {"val/AP": 0.5, "nan": "NaN"},
    }
    ((path, where),) = model.files.items()
    assert path == "deep/model.pth" and where.is_relative_to(run_dir) and where.read_bytes() == b"weights"
    assert odd.name.startswith("odd-name--") and odd.type.startswith("x-wandb-own")
    assert odd.metadata["unified_tracker/name"] == "odd name/ä"


def test_the_same_content_makes_no_second_version(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    for content, alias in [(b"1", "a"), (b"1", "a"), (b"1", "b"), (b"1", "a"), (b"2", "a"), (b"1", "a")]:
        tracker.log_artifact(*feed.artifact("data", {"f": content}, "dataset", aliases=(alias,)))
    tracker.close("FINISHED", TS)
    logged = [
        (path.read_bytes(), *sorted(set(version.aliases) - {"latest"}))
        for version in only_run(tmp_path).artifacts
        for path in version.files.values()
    ]
    assert logged == [(b"1", "a"), (b"1", "b"), (b"2", "a"), (b"1", "a")]  # the second only moves an alias


def test_more_metadata_than_wandb_takes_is_kept_below_more(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    tracker.log_artifact(*feed.artifact("m", {"f": b"1"}, metadata={str(key): key for key in range(150)}))
    tracker.close("FINISHED", TS)
    (version,) = only_run(tmp_path).artifacts
    assert len(version.metadata) == 100
    assert {**version.metadata, **version.metadata["more"]}["149"] == 149


def test_plain_files_keep_their_paths_and_cannot_leave_the_folder(start: Any, run_dir: Path, tmp_path: Path) -> None:
    tracker, feed = start(), Feeder(run_dir)
    tracker.log_artifact(*feed.artifact(None, {"out/a[1].txt": b"a", "config.yaml": b"mine"}, "file"))
    tracker.log_artifact(*feed.artifact(None, {"out/a[1].txt": b"newer"}, "file"))
    with pytest.raises(RejectedError):
        tracker.log_artifact(*feed.artifact(None, {"../evil": b"a"}, "file"))
    tracker.close("FINISHED", TS)
    (folder,) = offline_folders(tmp_path / "work")
    assert (folder / "files/out/a[1].txt").read_bytes() == b"newer"
    assert (folder / "files/files/config.yaml").read_bytes() == b"mine"
    assert {"out/a[1].txt", "files/config.yaml"} <= set(read_run(folder).saved)


# ---- the end, and going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [("FINISHED", 0), ("FAILED", 1), ("KILLED", 255)])
def test_the_status_is_the_run_s_exit_code(start: Any, tmp_path: Path, status: Any, code: int) -> None:
    tracker = start()
    tracker.close(status, TS)
    tracker.close(status, TS)
    run = only_run(tmp_path)
    assert run.exit_code == code
    assert run.summary["unified_tracker/status"] == run.config["unified_tracker/status"] == status
    assert (run.id, run.project, run.name, run.notes) == ("run0abcd", "balloon", "#0 first", "why")


def test_a_resumed_run_is_rebuilt_as_one_whole_run(start: Any, run_dir: Path, tmp_path: Path) -> None:
    feed, later = Feeder(run_dir), Feeder(run_dir, attempt=2)
    old = [feed.metrics(step, loss=step) for step in range(3)]
    new = [later.metrics(step, loss=step) for step in range(3, 5)]
    tracker = start()
    assert tracker.rebuilds
    tracker.log_metrics(old)
    tracker.close("KILLED", TS)
    stranger = tmp_path / "work/wandb/offline-run-20200101_000000-run0abcd"
    stranger.mkdir()
    tracker = start()
    assert tracker.rebuilds
    tracker.log_metrics([*old, *new])
    tracker.close("FINISHED", TS)
    assert stranger.is_dir(), "a folder that is not ours was removed"
    stranger.rmdir()
    run = only_run(tmp_path)
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert run.exit_code == 0


def test_what_was_uploaded_is_not_written_again(start: Any, run_dir: Path, tmp_path: Path) -> None:
    feed, later = Feeder(run_dir), Feeder(run_dir, attempt=2)
    tracker = start()
    tracker.log_metrics([feed.metrics(step, loss=step) for step in range(3)])
    tracker.log_params([feed.entry(Params(TS, {"lr": 1}))])
    tracker.close("KILLED", TS)
    (first,) = offline_folders(tmp_path / "work")
    (first / "run-run0abcd.wandb.synced").touch()
    for _ in range(2):  # the second time as after a crash
        tracker = start()
        assert not tracker.rebuilds
        tracker.log_metrics([later.metrics(3, loss=3)])
    tracker.close("FINISHED", TS)
    folders = offline_folders(tmp_path / "work")
    assert len(folders) == 2 and first in folders
    (second,) = set(folders) - {first}
    run = read_run(second)
    assert [(row["_step"], row["loss"]) for row in run.rows] == [(3, 3)]
    assert run.config["lr"] == 1
    assert tracker.address.look == f"wandb sync {first} {second}"


# ---- opening ---------------------------------------------------------------------------------------------------


def test_without_a_key_opening_online_says_what_to_do_and_leaves_nothing_open(tmp_path: Path, run_dir: Path) -> None:
    import wandb

    tracker = WandbTracker(info(tmp_path), run_dir, {"mode": "online"})
    assert not tracker.rebuilds
    for _ in range(2):
        with pytest.raises(TransientError, match="wandb login"):
            tracker.open(info(tmp_path))
    assert wandb.run is None


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    tracker = WandbTracker(info(tmp_path), run_dir, {"mode": "offline", "dir": str(tmp_path / "file")})
    with pytest.raises(TransientError, match="cannot be made"):
        tracker.open(info(tmp_path))
