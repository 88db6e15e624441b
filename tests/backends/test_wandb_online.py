"""W&B online: the real client, and the programs as a training starts them, against a loopback double of the server.

The truth check is `exactly`: the rows that the server holds are the rows that were logged, each once: name, step,
time, value.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

wandb = pytest.importorskip("wandb")

import unified_tracker as ut
from tests.backends.wandb_feeding import KEY, TS, Feeder, clean_environment, info
from tests.backends.wandb_server import ENTITY, WandbServer
from unified_tracker import TransientError, _start
from unified_tracker._journal import JournalReader
from unified_tracker._rundir import RunDirectory
from unified_tracker.backends._wandb_tracker import ASK_S, STALL_S, WandbTracker
from unified_tracker.records import Metrics, Params

# A run that a test leaves open, as a crash does, leaves threads of W&B's client behind, which complain at its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
RUN_ID: Final = "online00"
PATIENCE_S: Final = 60.0


@pytest.fixture
def server() -> Iterator[WandbServer]:
    double = WandbServer(KEY)
    yield double
    double.heal()
    wandb.teardown(exit_code=1)  # a run that a test has left open must not wait for a server at the end of all tests
    double.close()


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: WandbServer) -> None:
    """A key and a server; a client that does not wait long between requests; runs whose delivery the tests start."""
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # whole seconds
    for what in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MIN_SECONDS", "1")
        monkeypatch.setenv(f"WANDB__{what}_RETRY_WAIT_MAX_SECONDS", "1")
    monkeypatch.setenv("UNIFIED_TRACKER_LINGER_S", "60")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(_start.UploaderProcess, "start", lambda self: None)
    monkeypatch.setattr("unified_tracker._watch.DeliveryWatch.wait", lambda self, last, timeout_s: False)


# ---- recording, delivering, comparing --------------------------------------------------------------------------


def record(first: int = 0, rows: int = 60, *, everything: bool = False, **more: Any) -> RunDirectory:
    """Log rows in a run, or rows and one of everything else, and end it. Nothing is delivered."""
    run = ut.start_run("wandb", project="balloon", name="first", id=RUN_ID, **more)
    for step in range(first, first + rows):
        odd = math.nan if step % 10 == 3 else math.inf if step % 10 == 4 else 1 / (step + 3)
        run.log_metrics({"train/loss": odd, "train/lr": 0.1 * step}, step=step)
        if everything and step == first + rows // 2:
            run.log_image("val/sample", np.full((4, 4, 3), 7, np.uint8), step=step)
            weights = Path("model.pth")
            weights.write_text("weights")
            run.log_artifact(weights, name="model", type="model", aliases=["best"])
            run.log_artifact(weights)
    run.log_metrics({"train/loss": 5e-324, "_hostile/ä name": 2.0}, step=first)
    assert run.dir is not None
    run.finish(timeout_s=0)
    return RunDirectory(run.dir)


def start(module: str, place: RunDirectory, *arguments: str) -> subprocess.Popen[bytes]:
    with (place.path / "output.txt").open("ab") as output:
        command = [sys.executable, "-m", f"unified_tracker.{module}", str(place.path), *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def lane(place: RunDirectory) -> subprocess.Popen[bytes]:
    return start("_lane", place, "wandb", "60")


def sync(place: RunDirectory) -> int:
    return start("_uploader", place).wait(120)


def said(place: RunDirectory) -> str:
    return (place.path / "output.txt").read_text(errors="replace")


def done(place: RunDirectory) -> bool:
    state = place.lane_state("wandb")
    return state is not None and state.done


def trouble(place: RunDirectory) -> str:
    state = place.lane_state("wandb")
    return (state.error or "") if state is not None else ""


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def service_of(process: subprocess.Popen[bytes]) -> int:
    """The W&B service process of a lane."""
    return int(subprocess.run(["pgrep", "-P", str(process.pid), "wandb-core"], capture_output=True, check=True).stdout)


def until(condition: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


def exactly(server: WandbServer, place: RunDirectory) -> None:
    """The server holds what the journal holds: nothing is missing, nothing is there twice."""
    assert server.problems == []
    run = server.runs[RUN_ID]
    names = run.values.get("unified_tracker/names", {})
    held = Counter(
        (names.get(name, name), row.get("trainer/step"), round(row["_timestamp"] * 1000), bits(value))
        for row in run.rows
        for name, value in row.items()
        if isinstance(value, (int, float)) and not name.startswith("_") and name != "trainer/step"
    )
    reader, logged = JournalReader(place.journal), Counter[Any]()
    while entries := reader.read(final=True):
        logged.update(
            (name, entry.record.step, entry.record.ts, bits(value))
            for entry in entries
            if isinstance(entry.record, Metrics)
            for name, value in entry.record.values.items()
        )
    assert held == logged
    if versions := server.committed("model"):
        assert [list(version.files.values()) for version in versions] == [[b"weights"]]
        assert versions[0].aliases == {"best", "latest"} and run.files["model.pth"] == b"weights"
        assert all(row["val/sample"]["path"] in run.files for row in run.rows if "val/sample" in row)
    assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))
    assert done(place) and (run.state, run.exit_code) == ("finished", 0)
    assert run.values["unified_tracker/delivery"] == "complete"


# ---- the promise -----------------------------------------------------------------------------------------------


def test_everything_arrives_once_however_often_it_is_sent(server: WandbServer, tmp_path: Path) -> None:
    run = ut.start_run("wandb", project="balloon", name="first", tags={"stage": "dev"}, id=RUN_ID)
    assert run.dir is not None
    run.log_params({"model": {"depth": 50}, "lr": 0.1})
    for step in range(500):
        run.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
    run.log_image("val/sample", np.full((4, 4, 3), 7, np.uint8), step=500)
    run.log_table("val/per_class", ["class", "AP"], [["a", 0.5]], step=500)
    run.log_params({"lr": 0.2})
    for name, content, alias in [("m.pth", "one", "first"), ("m.pth", "two", "best")]:
        (tmp_path / name).write_text(content)
        run.log_artifact(tmp_path / name, name="two", type="model", aliases=[alias])
    run.log_artifact(tmp_path / "m.pth")
    run.finish(timeout_s=0)
    place = RunDirectory(run.dir)
    shutil.copytree(place.path / "files", tmp_path / "files")
    for attempt in range(3):
        if attempt == 2:  # everything is sent again, as from a copy of the run directory that was made before
            for file in place.lanes.iterdir():
                file.unlink()
            shutil.copytree(tmp_path / "files", place.path / "files", dirs_exist_ok=True)
        assert sync(place) == 0, said(place)
        exactly(server, place)
        held = server.runs[RUN_ID]
        assert (held.name, held.project, held.tags[:1]) == ("first", "balloon", ["stage:dev"])
        assert held.values["model"] == {"depth": 50} and held.values["lr"] == 0.2
        assert [change[:3] for change in held.values["unified_tracker/changed_params"]] == [["lr", 0.1, 0.2]]
        media = [row[name]["path"] for row in held.rows for name in ("val/sample", "val/per_class") if name in row]
        assert len(media) == 2 and set(media) <= set(held.files)
        assert held.files["m.pth"] == b"two"
        first, best = server.committed("two")
        assert (list(first.files.values()), first.aliases) == ([b"one"], {"first"})
        assert (list(best.files.values()), best.aliases) == ([b"two"], {"best", "latest"})
    assert server.requests["gql/CreateArtifact"] == 6, "the second delivery was not a no-op"


def test_a_resumed_run_goes_on_behind_its_rows(server: WandbServer) -> None:
    place = record()
    assert sync(place) == 0, said(place)
    assert record(first=60).path == place.path
    assert sync(place) == 0, said(place)
    exactly(server, place)
    assert list(server.runs) == [RUN_ID] and len(server.runs[RUN_ID].rows) == 122


def test_no_credential_leaves_the_environment(server: WandbServer) -> None:
    place = record()
    uploader = start("_uploader", place)
    seen = set()
    while uploader.poll() is None:
        lines = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        seen.update(line for line in lines if str(place.path) in line or "wandb-core" in line)
        time.sleep(0.1)
    assert uploader.returncode == 0, said(place)
    assert any("_lane" in line for line in seen) and any("wandb-core" in line for line in seen)
    assert not [line for line in seen if KEY in line]
    files = [path for path in place.path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# ---- the server ------------------------------------------------------------------------------------------------


def test_rows_that_the_client_dropped_silently_are_not_acknowledged(server: WandbServer) -> None:
    place = record()
    for status in [400, 404, 409]:
        server.fault("file_stream/rows", status)
        assert lane(place).wait(120) == 1, said(place)
        assert not done(place) and server.runs[RUN_ID].rows == []
        assert "its server lacks 61 rows" in trouble(place)
        server.heal()
    assert sync(place) == 0, said(place)
    exactly(server, place)


@pytest.mark.parametrize("after", [False, True], ids=["errors", "lost answers"])
def test_errors_and_lost_answers_lose_and_double_nothing(server: WandbServer, after: bool) -> None:
    place = record(everything=True)
    labels = ["UpsertBucket", "RunResumeStatus", "CreateArtifact$", "CreateArtifactFiles", "CommitArtifact"]
    labels = [*(f"gql/{label}" for label in labels), "gql/CreateRunFiles", "put/", "file_stream", "file_stream/rows"]
    faults = [server.fault(label, 500, after=after, times=1) for label in labels]
    faults += [server.fault(label, 429, after=after, times=1, headers={"Retry-After": "1"}) for label in labels[-2:]]
    assert sync(place) == 0, said(place)
    assert {fault.match: fault.hits for fault in faults} == {fault.match: 1 for fault in faults}
    exactly(server, place)


def test_an_artifact_that_the_server_refuses_for_a_while_is_not_set_aside(server: WandbServer) -> None:
    place = record(everything=True)
    server.fault("gql/CommitArtifact", 403)
    uploading = lane(place)
    until(lambda: trouble(place), "an error is shown")
    assert not done(place) and server.committed("model") == []
    server.heal()
    assert uploading.wait(120) == 0, said(place)
    exactly(server, place)


def test_malformed_answers_which_crash_the_client_cost_restarts(server: WandbServer) -> None:
    place = record(everything=True)
    faults = [
        server.fault("gql/UpsertBucket", 200, times=1, body=b'{"data": {}}'),
        server.fault("gql/CreateArtifactFiles", 200, times=1, body=b'{"data": {"createArtifactFiles": null}}'),
        server.fault("gql/CreateRunFiles", 200, times=1, body=b'{"data": {"createRunFiles": null}}'),
    ]
    assert sync(place) == 0, said(place)
    assert [fault.hits for fault in faults] == [1, 1, 1]
    assert "started anew" in said(place)
    exactly(server, place)


def test_a_server_that_goes_away_and_comes_back_gets_everything(server: WandbServer) -> None:
    place = record(rows=300, everything=True)
    server.stop()
    uploading = lane(place)
    until(lambda: place.lane_state("wandb"), "the lane begins")
    time.sleep(2)
    server.start()
    until(lambda: server.requests["gql/UpsertBucket"], "the run is made")
    server.stop()
    time.sleep(1)
    server.start()
    assert uploading.wait(120) == 0, said(place)
    exactly(server, place)


def test_a_server_that_stops_answering_loses_and_doubles_nothing(server: WandbServer) -> None:
    place = record(rows=300, everything=True)
    hole = server.fault("file_stream/rows|gql/CommitArtifact", None)
    uploading = lane(place)
    until(lambda: hole.hits, "a request without an answer")
    server.fault("", None)
    time.sleep(1)
    kill(uploading)
    server.heal()
    assert sync(place) == 0, said(place)
    exactly(server, place)


# ---- the client ------------------------------------------------------------------------------------------------

MOMENTS: Final = [
    "gql/RunResumeStatus",
    "gql/UpsertBucket",
    "file_stream/rows",
    "gql/CreateArtifact$",
    "gql/CommitArtifact",
    "put/run",
]


def test_a_lane_killed_at_any_moment_sends_again_what_is_missing(server: WandbServer) -> None:
    place = record(rows=300, everything=True)
    came = 0
    for moment in MOMENTS * int(os.environ.get("UNIFIED_TRACKER_TEST_ROUNDS", "1")):
        moment_comes = server.fault(moment, None, times=1)
        uploading = lane(place)
        until(lambda: moment_comes.hits or uploading.poll() is not None, moment)  # noqa: B023 -- called at once
        came += moment_comes.hits  # not always: a service process outlives its lane, and may have got further
        kill(uploading)
        server.heal()
    assert sync(place) == 0, said(place)
    exactly(server, place)
    assert came >= len(MOMENTS) - 2
    assert [version.state for version in server.versions] == ["COMMITTED"] * len(server.versions)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_service_process_that_dies_or_hangs_costs_a_restart(server: WandbServer, sent: signal.Signals) -> None:
    place = record(rows=300, everything=True)
    hole = server.fault("file_stream/rows", None)
    uploading = lane(place)
    until(lambda: hole.hits, "rows are on their way")
    service = service_of(uploading)
    os.kill(service, sent)
    server.heal()
    if sent == signal.SIGSTOP:
        time.sleep(1)
        assert uploading.poll() is None
        kill(uploading)  # as the uploader does with a lane that hangs
        os.kill(service, signal.SIGKILL)
    else:
        assert uploading.wait(60) == 1, said(place)
    assert not done(place)
    assert sync(place) == 0, said(place)
    exactly(server, place)


# ---- what counts as held ---------------------------------------------------------------------------------------


class ManualClock:
    """Time that passes only when it is told to, or slept away."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(min(seconds, 0.05))


def opened(tmp_path: Path, clock: ManualClock) -> WandbTracker:
    (tmp_path / "run").mkdir(exist_ok=True)
    run = info(tmp_path)
    tracker = WandbTracker(run, tmp_path / "run", {"mode": "online"}, clock=clock)
    assert tracker.open(run).url.endswith(f"{ENTITY}/balloon/runs/{run.id}")
    return tracker


def test_held_follows_what_the_server_reports_and_a_restart_behind_it_misses_nothing(
    server: WandbServer, tmp_path: Path
) -> None:
    clock, feed = ManualClock(), Feeder(tmp_path / "run")
    tracker = opened(tmp_path, clock)
    tracker.log_params([feed.entry(Params(TS, {"lr": 0.1})), feed.entry(Params(TS + 1, {"lr": 0.2}))])
    tracker.log_metrics([feed.entry(Metrics(TS, step, {"_x": step})) for step in range(50)])
    served = server.runs["run0abcd"]
    until(lambda: len(served.lines) == 50, "rows arrive")
    asked = server.requests["gql/Run"]
    assert tracker.held() == 0 and server.requests["gql/Run"] == asked  # not yet time to ask
    clock.now += ASK_S
    assert tracker.held() == (1 << 40) + 52
    stopped = server.fault("file_stream/rows", None)
    late = feed.metrics(50, loss=1)
    tracker.log_metrics([late])
    until(lambda: stopped.hits, "the row is on its way")
    clock.now += ASK_S
    assert tracker.held() == (1 << 40) + 52
    server.heal()

    served.config = {}  # as if it had not arrived: W&B's client sends it when it sees fit
    again = opened(tmp_path, clock)
    again.log_metrics([late, feed.metrics(51, loss=2)])
    again.close("FINISHED", TS)
    assert [row["_step"] for row in served.rows] == list(range(52))
    assert served.values["lr"] == 0.2
    assert [change[:3] for change in served.values["unified_tracker/changed_params"]] == [["lr", 0.1, 0.2]]
    assert set(served.values["unified_tracker/names"].values()) == {"_x"}


def test_a_picture_is_held_when_its_file_is_there(server: WandbServer, tmp_path: Path) -> None:
    clock, feed = ManualClock(), Feeder(tmp_path / "run")
    tracker = opened(tmp_path, clock)
    lost = server.fault("put/run/.*media", 403)
    tracker.log_media(*feed.media("text", "note", 1, b"text", "t.txt"))
    served = server.runs["run0abcd"]
    until(lambda: lost.hits and served.lines, "the row arrives, the file does not")
    clock.now += ASK_S
    assert tracker.held() == 0
    with pytest.raises(TransientError, match="lacks 1 files"):
        tracker.close("FINISHED", TS)
    server.heal()
    again = opened(tmp_path, clock)
    again.log_media(*Feeder(tmp_path / "run").media("text", "note", 1, b"text", "t.txt"))
    again.close("FINISHED", TS)
    (row,) = served.rows
    assert row["note"]["path"] in served.files


def test_a_stream_that_has_died_is_noticed_while_the_training_goes_on(server: WandbServer, tmp_path: Path) -> None:
    clock, feed = ManualClock(), Feeder(tmp_path / "run")
    tracker = opened(tmp_path, clock)
    died = server.fault("file_stream/rows", 404)
    tracker.log_metrics([feed.metrics(1, loss=1)])
    until(lambda: died.hits, "the row is refused")
    clock.now += STALL_S
    assert tracker.held() == 0
    with pytest.raises(SystemExit, match="0 of 1 rows"):
        tracker.log_metrics([feed.metrics(2, loss=1)])


# ---- from offline to online ------------------------------------------------------------------------------------


@pytest.mark.parametrize("synced", [False, True], ids=["not synced", "synced by wandb"])
def test_a_run_recorded_offline_is_delivered_from_its_journal_once_it_is_online(
    server: WandbServer, synced: bool
) -> None:
    place = record(everything=True, options={"wandb": {"mode": "offline"}})
    assert sync(place) == 0 and server.runs == {}
    if synced:
        folder = place.lane_state("wandb").address.url
        subprocess.run([sys.executable, "-m", "wandb", "sync", folder], check=True, timeout=60)
        assert len(server.runs[RUN_ID].rows) == 62
    run = place.info()
    run.backends["wandb"]["mode"] = "online"
    place.create(run)
    for file in place.lanes.iterdir():
        file.unlink()
    assert sync(place) == 0, said(place)
    exactly(server, place)
