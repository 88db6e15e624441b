"""Artifacts of runs that were recorded offline, by reference: what this machine has noted of its own runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("wandb")

import unified_tracker as ut
from tests.backends.wandb_feeding import KEY, TS, clean_environment
from tests.backends.wandb_files import offline_folders, read_run
from unified_tracker import _start
from unified_tracker._delivery import deliveries
from unified_tracker._errors import TrackerError
from unified_tracker._fetching import fetch
from unified_tracker._reference import parse
from unified_tracker._rundir import RunDirectory
from unified_tracker._store import open_store
from unified_tracker._versions import ArtifactVersion
from unified_tracker.backends import _wandb_index
from unified_tracker.records import Input, StagedFile

RUN_ID = "train000"


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, so that runs are recorded offline; a home of our own; runs whose delivery the tests start."""
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("UNIFIED_TRACKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNIFIED_TRACKER_LINGER_S", "60")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(_start.UploaderProcess, "start", lambda self: None)
    monkeypatch.setattr("unified_tracker._watch.DeliveryWatch.wait", lambda self, last, timeout_s: False)


def recorded(id: str, *logged: Callable[[ut.Run], None], project: str = "balloon") -> RunDirectory:  # noqa: A002
    """A run that logs these, delivered."""
    place = journalled(id, *logged, project=project)
    deliver(place)
    return place


def journalled(id: str, *logged: Callable[[ut.Run], None], project: str = "balloon") -> RunDirectory:  # noqa: A002
    run = ut.start_run("wandb", project=project, name=f"run {id}", id=id)
    for log in logged:
        log(run)
    assert run.dir is not None
    run.finish(timeout_s=0)
    return RunDirectory(run.dir)


def deliver(place: RunDirectory) -> None:
    command = [sys.executable, "-m", "unified_tracker._uploader", str(place.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    state = place.lane_state("wandb")
    assert state is not None and state.done and state.set_aside == 0 and state.notes == (), state


def checkpoint(content: bytes, **more: object) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        path = Path(f"{run.id}-model.pth")
        path.unlink(missing_ok=True)  # what was logged before is linked: nobody is there to make it private
        path.write_bytes(content)
        run.log_checkpoint(path, **more)  # type: ignore[arg-type]

    return log


def dataset(content: str) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        folder = Path("data")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "annotations.json").write_text(content)
        (folder / "images" / "1.jpg").write_text("image")
        run.log_artifact(
            folder, name="balloon train", type="dataset", metadata={"digest": content, "odd": float("nan")}
        )

    return log


def used(*records: Input) -> Callable[[ut.Run], None]:
    def log(run: ut.Run) -> None:
        for record in records:
            run._log_input(record)

    return log


def use(version: ArtifactVersion, role: str, **more: object) -> Input:
    text = f"wandb-artifact://{version.name}:latest"
    return Input(
        TS,
        role,
        version.type,
        text,
        version.name,
        version.version,
        version.digest,
        "wandb",
        version.uri,
        **more,  # type: ignore[arg-type]
    )


def find(text: str) -> ArtifactVersion:
    reference = parse(text)
    assert reference is not None
    return open_store("wandb").find(reference)


def models() -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.name, each.version, each.aliases) for each in open_store("wandb").versions(type="model")]


# ---- finding and fetching ----------------------------------------------------------------------------------------


def test_what_was_recorded_offline_is_fetched_by_reference_into_another_cache(tmp_path: Path) -> None:
    recorded(
        RUN_ID,
        dataset("one"),
        checkpoint(
            b"first", step=90, epoch=1.5, metrics={"bbox/mAP": 0.5, "odd": float("nan")}, aliases=["best-bbox/mAP"]
        ),
        checkpoint(b"second", step=180, aliases=["last"]),
    )
    found = fetch("wandb-artifact://run-train000-model:best-bbox.mAP")
    assert [path.read_bytes() for path in found.folder.iterdir()] == [b"first"]
    version = found.version
    assert (version.project, version.version, version.aliases) == ("balloon", "v0", ("best-bbox.mAP",))
    assert (version.metrics, version.step, version.epoch, version.run_id) == ({"bbox/mAP": 0.5}, 90, 1.5, RUN_ID)
    folder = fetch("wandb-artifact://balloon/balloon train:latest").folder
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "annotations.json",
        "images/1.jpg",
    ]
    assert models() == [
        ("run-train000-model", "v1", ("last", "latest")),
        ("run-train000-model", "v0", ("best-bbox.mAP",)),
    ]


def test_the_digest_is_that_of_wandbs_own_file(tmp_path: Path) -> None:
    recorded(RUN_ID, checkpoint(b"first"))
    (artifact,) = read_run(offline_folders(Path())[0]).artifacts
    assert find("wandb-artifact://run-train000-model").digest == artifact.digest


def test_the_same_content_is_one_version_in_whichever_run(tmp_path: Path) -> None:
    recorded("data0000", dataset("one"))
    recorded("data0001", dataset("one"))
    recorded("data0002", dataset("two"))
    recorded("data0003", dataset("one"))
    found = open_store("wandb").versions(name="balloon train")
    assert [(each.version, each.aliases, each.run_id) for each in found] == [
        ("v1", (), "data0002"),
        ("v0", ("latest",), "data0000"),
    ]


def test_delivering_again_and_lanes_killed_on_the_way_count_nothing_twice(tmp_path: Path) -> None:
    steps = [log for number in range(6) for log in (checkpoint(b"%d" % number, aliases=["best"]),)]
    place = journalled(RUN_ID, *steps)
    for _ in range(3):
        command = [sys.executable, "-m", "unified_tracker._lane", str(place.path), "wandb", "60"]
        lane = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, give_up = len(models()), time.monotonic() + 60
        while len(models()) == before and lane.poll() is None and time.monotonic() < give_up:
            time.sleep(0.01)
        lane.send_signal(signal.SIGKILL)
        lane.wait()
    deliver(place)
    expected = [
        ("run-train000-model", f"v{number}", ("best", "latest") if number == 5 else ()) for number in range(5, -1, -1)
    ]
    assert models() == expected
    for file in place.lanes.iterdir():
        file.unlink()
    deliver(place)
    assert models() == expected
    journalled(RUN_ID, checkpoint(b"0", aliases=["last"]))  # resumed: what is old is delivered again as well
    deliver(place)
    assert models()[-1] == ("run-train000-model", "v0", ("last", "latest")) and len(models()) == 6


def test_a_project_is_needed_only_where_a_name_is_in_several(tmp_path: Path) -> None:
    recorded("data0000", dataset("one"))
    recorded("data0001", dataset("two"), project="other")
    with pytest.raises(TrackerError, match="may mean several, in the projects balloon, other"):
        find("wandb-artifact://balloon train")
    assert find("wandb-artifact://other/balloon train").run_id == "data0001"
    assert find("wandb-artifact://somebody/other/balloon train").run_id == "data0001"


def test_what_is_not_there_is_told_with_what_is_there_instead(tmp_path: Path) -> None:
    recorded(RUN_ID, checkpoint(b"first", aliases=["best"]))
    for text, said in [
        (
            "run-train000-model:v7",
            "has no 'v7' among what was recorded offline on this machine; it has best, latest, v0",
        ),
        ("balloon-val", "there is balloon/run-train000-model. What a server holds is found with WANDB_MODE=online"),
        (
            "other/run-train000-model",
            "recorded offline in project 'other' on this machine; there is balloon/run-train000",
        ),
    ]:
        with pytest.raises(TrackerError, match=said):
            find(f"wandb-artifact://{text}")


def test_a_run_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    place = recorded(RUN_ID, checkpoint(b"first"))
    version = find("wandb-artifact://run-train000-model")
    shutil.rmtree(place.path)
    assert models() == []
    for call in (
        lambda: find("wandb-artifact://run-train000-model"),
        lambda: open_store("wandb").download(version, "x", tmp_path),
    ):
        with pytest.raises(TrackerError, match=r"recorded offline by run train000, and its run directory .* is gone"):
            call()


def test_a_home_that_cannot_be_written_costs_the_name_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    place = journalled(RUN_ID, checkpoint(b"first"))
    command = [sys.executable, "-m", "unified_tracker._uploader", str(place.path)]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    state = place.lane_state("wandb")
    assert state is not None and state.done
    (note,) = state.notes
    assert "is recorded, but is not found by name on this machine" in note


# ---- lineage -----------------------------------------------------------------------------------------------------


def test_a_chain_of_runs_is_told_without_a_server(tmp_path: Path) -> None:
    recorded("data0000", dataset("one"))
    train = find("wandb-artifact://balloon train")
    weights = tmp_path / "zoo.pth"
    weights.write_bytes(b"zoo")
    zoo = StagedFile("zoo.pth", str(weights), 3, weights.stat().st_mtime_ns)
    external = Input(TS, "weights", "model", "detectron2://zoo.pth", "zoo.pth", file=zoo)
    recorded(RUN_ID, used(external, use(train, "train")), checkpoint(b"first"))
    model = find("wandb-artifact://run-train000-model")
    place = recorded(
        "eval0000", used(use(model, "checkpoint"), use(model, "checkpoint", metrics={"test/mAP": 0.4}, step=9))
    )
    source = open_store("wandb")
    summary = source.run(RUN_ID)
    assert (summary.id, summary.name, summary.project, summary.status) == (
        RUN_ID,
        "run train000",
        "balloon",
        "FINISHED",
    )
    assert [(each.role, each.name, each.uri) for each in summary.inputs] == [
        ("weights", "zoo.pth", ""),
        ("train", train.name, train.uri),
    ]
    assert len(summary.inputs[0].digest) == 64 and summary.url.startswith(str(Path.cwd() / "wandb" / "offline-run"))
    assert [run.id for run in source.users(train)] == [RUN_ID] and [run.id for run in source.users(model)] == [
        "eval0000"
    ]
    assert find("wandb-artifact://run-train000-model").metrics == {"test/mAP": 0.4}
    (folder,) = [folder for folder in offline_folders(Path()) if "eval0000" in folder.name]
    (told,) = read_run(folder).config["unified_tracker/inputs"]
    assert told["reference"] == f"<{use(model, '').reference}>"  # the bare one would be an order to fetch it
    assert (told["role"], told["metrics"], told["step"]) == ("checkpoint", {"test/mAP": 0.4}, 9)
    shutil.rmtree(place.path)
    assert [run.status for run in source.users(model)] == [""]


# ---- the end of a version ----------------------------------------------------------------------------------------


def test_a_deleted_version_stays_deleted_when_its_run_is_delivered_again(tmp_path: Path) -> None:
    place = recorded(RUN_ID, checkpoint(b"first", aliases=["best"]), checkpoint(b"second", aliases=["best"]))
    open_store("wandb").delete(find("wandb-artifact://run-train000-model:best"))
    assert models() == [("run-train000-model", "v0", ("latest",))]
    deliver(place)
    journalled(RUN_ID, checkpoint(b"third"), checkpoint(b"second"))
    deliver(place)
    assert [version for _, version, _ in models()] == ["v3", "v2", "v0"]  # what was deleted counts anew, as in W&B


def test_a_run_that_goes_online_is_looked_for_on_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded(RUN_ID, checkpoint(b"first"))
    recorded("train001", checkpoint(b"other"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    delivery = next(each for each in deliveries([Path()]) if each.info.id == RUN_ID)
    delivery.go_online()
    assert [name for name, _, _ in models()] == ["run-train001-model"]
    with pytest.raises(
        TrackerError, match="has been delivered to the server since: it is found there, with WANDB_MODE"
    ):
        find("wandb-artifact://run-train000-model")


def test_files_stay_for_as_long_as_wandb_sync_may_want_them(tmp_path: Path) -> None:
    place = recorded(RUN_ID, checkpoint(b"first"))
    (folder,) = offline_folders(Path())
    (file,) = folder.glob("*.wandb")
    file.with_name(f"{file.name}.synced").touch()  # `wandb sync` was here: what comes now goes into a folder of its own
    journalled(RUN_ID, checkpoint(b"second"))
    deliver(place)
    (second,) = [other for other in offline_folders(Path()) if other != folder]
    (artifact,) = read_run(second).artifacts
    assert [path.read_bytes() for path in artifact.files.values()] == [b"second"]
    assert [version for _, version, _ in models()] == ["v1", "v0"]
    assert fetch("wandb-artifact://run-train000-model:v0").folder.is_dir()


def test_the_index_is_read_without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; import {_wandb_index.__name__}; import unified_tracker.backends._wandb_offline_store"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('wandb' in sys.modules)"], check=False)
    assert done.returncode == 0
