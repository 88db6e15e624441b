"""Starting a run: the switch, what is refused before training, and what a log call may cost the caller."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import unified_tracker as ut
from unified_tracker._journal import JournalReader
from unified_tracker._staging import FOLDERS
from unified_tracker.records import Artifact, Finished, Metrics, Params, Record


def records(run: ut.Run) -> list[Record]:
    assert run.dir is not None
    return [entry.record for entry in JournalReader(run.dir / "journal").read(1 << 24, final=True)]


def backends(run: ut.Run) -> list[str]:
    return list(run.info.backends)


def test_backend_is_the_argument_then_the_environment_then_the_file_then_mlflow(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ut.start_run() as run:
        assert backends(run) == ["mlflow"]
    (recording / "tracker.yaml").write_text(
        "tracker: [mlflow, wandb]\nproject: from-file\noptions: {wandb: {mode: offline}}\n"
    )
    with ut.start_run() as run:
        assert backends(run) == ["mlflow", "wandb"]
        assert run.info.project == "from-file"
    monkeypatch.setenv("UNIFIED_TRACKER", "mlflow")
    with ut.start_run(project="from-call") as run:
        assert backends(run) == ["mlflow"]
        assert run.info.project == "from-call"
    with ut.start_run("wandb", options={"wandb": {"mode": "offline"}}) as run:
        assert backends(run) == ["wandb"]


@pytest.mark.parametrize("way", ["argument", "environment", "file"])
def test_off_turns_tracking_off_everywhere(recording: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    argument: str | None = None
    if way == "argument":
        argument = "off"
    elif way == "environment":
        monkeypatch.setenv("UNIFIED_TRACKER", "off")
        argument = "mlflow"
    else:
        (recording / "tracker.yaml").write_text("tracker: off\n")
    with ut.start_run(argument) as run:
        assert not run.active
        run.log_metrics({"x": 1.0}, step=1)
        run.log_image("x", np.zeros((2, 2, 3), np.uint8))
        run.log_checkpoint("does-not-exist.pth")
    assert not (recording / "unified-tracker").exists()


def test_unknown_backend_lists_what_there_is(recording: Path) -> None:
    with pytest.raises(
        ut.BackendNotFoundError, match=r"no tracker backend named 'mlfow' \(installed: .*mlflow, wandb.*'off'"
    ):
        ut.start_run("mlfow")


def test_misspelt_option_names_the_nearest(recording: Path) -> None:
    with pytest.raises(ut.ConfigurationError, match="unknown option 'traking_uri'; did you mean 'tracking_uri'"):
        ut.start_run("mlflow", options={"mlflow": {"traking_uri": "x"}})


def test_misspelt_key_in_the_file_is_refused(recording: Path) -> None:
    (recording / "tracker.yaml").write_text("trakcer: mlflow\n")
    with pytest.raises(ut.ConfigurationError, match=r"tracker\.yaml: unknown option 'trakcer'; did you mean 'tracker'"):
        ut.start_run()


def test_missing_sdk_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ut.BackendUnavailableError, match=r"needs the package 'mlflow': pip install \"unified-tracker\[mlflow\]\""
    ):
        ut.start_run("mlflow")


def test_unwritable_directory_is_refused_before_training(recording: Path) -> None:
    (recording / "file").write_text("")
    with pytest.raises(ut.ConfigurationError, match="cannot be written"):
        ut.start_run("mlflow", dir=recording / "file")


def test_ranks_above_zero_record_nothing(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = ut.start_run("mlflow")
    assert not run.active
    assert not (recording / "unified-tracker").exists()


def test_an_exception_is_recorded_and_raised_again(recording: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), ut.start_run("mlflow") as run:
        raise RuntimeError("boom")
    last = records(run)[-1]
    assert isinstance(last, Finished)
    assert (last.status, last.reason) == ("FAILED", "RuntimeError: boom")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(3), "FAILED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_status_follows_the_way_out(recording: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), ut.start_run("mlflow") as run:
        raise error
    last = records(run)[-1]
    assert isinstance(last, Finished)
    assert last.status == status


def test_a_bad_value_is_refused_and_its_neighbours_are_recorded(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ut.start_run("mlflow") as run:
        run.log_metrics({"good": 1.0, "bad": "text", "array": np.zeros(3), "tensor": np.float32(2)}, step=np.int64(3))
        run.log_metrics({"x": 1.0}, step="later")  # type: ignore[arg-type]
        assert run.refused == 3
    rows = [record for record in records(run) if isinstance(record, Metrics)]
    assert rows[0].values == {"good": 1.0, "tensor": 2.0}
    assert rows[0].step == 3
    assert (rows[1].step, rows[1].bad_step) == (None, "'later'")
    assert "metric 'bad' is no number: 'text' (str)" in capsys.readouterr().err


def test_on_error_raise_raises_after_the_rest_was_recorded(recording: Path) -> None:
    with ut.start_run("mlflow", on_error="raise") as run:
        with pytest.raises(ut.RecordError, match="metric 'bad' is no number"):
            run.log_metrics({"bad": None}, step=1)
        with pytest.raises(ut.RecordError, match=r"image 'x': shape .* are expected"):
            run.log_image("x", np.zeros((2, 2, 7), np.uint8))
        with pytest.raises(ut.RecordError, match="neither a file nor a folder"):
            run.log_artifact(recording / "nothing")
        assert run.active


def test_steps_count_up_where_none_is_given(recording: Path) -> None:
    with ut.start_run("mlflow") as run:
        run.log_metrics({"a": 1.0})
        run.log_metrics({"a": 2.0})
        run.log_metrics({"a": 3.0}, step=10)
        run.log_metrics({"b": 4.0})
    assert [record.step for record in records(run) if isinstance(record, Metrics)] == [0, 1, 10, 10]


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_secrets_never_reach_the_run_directory(recording: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    secret = "hunter2hunter2"
    uri = f"{scheme}://me:{secret}@tracking.example:5000"
    options = {"mlflow": {"tracking_uri": uri}}
    monkeypatch.setattr(sys, "argv", ["train.py", f"--api-key={secret}"])
    run = ut.start_run("mlflow", options=options, config={"db": {"password": secret}}, tags={"token": secret})
    run.set_tags({"api_key": secret})
    run.finish("FAILED", f"cannot reach https://me:{secret}@host")
    assert run.dir is not None
    for path in run.dir.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    user = "" if scheme == "https" else "me@"
    assert run.info.backends["mlflow"]["tracking_uri"] == f"{scheme}://{user}tracking.example:5000"
    assert run._uploader is not None
    assert secret in "".join(run._uploader.secrets.values())


def test_a_rotated_checkpoint_keeps_its_bytes_and_without_a_guard_a_rewritten_one_is_copied(recording: Path) -> None:
    rotated, rewritten = recording / "epoch_1.pth", recording / "model_best.pth"
    with ut.start_run("mlflow") as run:
        rotated.write_bytes(b"one")
        run.log_checkpoint(rotated, step=1)
        rotated.unlink()
        for content in (b"first", b"second"):
            rewritten.write_bytes(content)
            run.log_checkpoint(rewritten, step=2)
    artifacts = [record for record in records(run) if isinstance(record, Artifact)]
    assert run.dir is not None
    assert [(run.dir / artifact.files[0].staged).read_bytes() for artifact in artifacts] == [
        b"one",
        b"first",
        b"second",
    ]
    assert {artifact.name for artifact in artifacts} == {f"run-{run.id}-model"}


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("model_best.pth", True),
        ("model_final.pth", True),
        ("last.pth", True),
        ("best.ckpt.tar", True),
        ("best_coco_bbox_mAP_epoch_12.pth", False),
        ("model_0000099.pth", False),
        ("epoch_3.pth", False),
    ],
)
def test_without_a_guard_only_what_is_written_over_in_place_is_copied(recording: Path, name: str, copied: bool) -> None:
    (recording / name).write_bytes(b"weights" * (1 << 18))
    with ut.start_run("mlflow") as run:
        run.log_checkpoint(recording / name, step=1)
    assert run.dir is not None
    (staged,) = (path for folder in FOLDERS for path in (run.dir / folder).glob("*"))
    assert (staged.stat().st_nlink == 1) == copied


def test_nobody_else_can_read_a_run_whatever_the_umask_says(recording: Path) -> None:
    before = os.umask(0)
    try:
        run = ut.start_run("mlflow")
        run.log_artifact(__file__)
        run.finish()
    finally:
        os.umask(before)
    assert run.dir is not None
    assert {stat.S_IMODE(path.stat().st_mode) for path in (run.dir, run.dir / "files", run.dir / "journal")} == {0o700}


def test_a_run_goes_on_under_its_id(recording: Path) -> None:
    with ut.start_run("mlflow", project="p", name="n") as first:
        first.log_metrics({"x": 1.0}, step=1)
    with ut.start_run("mlflow", id=first.id) as second:
        second.log_metrics({"x": 2.0}, step=2)
    assert second.id == first.id
    assert second.info.project == "p"
    assert [record.values["x"] for record in records_of_both(second) if isinstance(record, Metrics)] == [1.0, 2.0]


def records_of_both(run: ut.Run) -> list[Record]:
    assert run.dir is not None
    reader, found = JournalReader(run.dir / "journal"), []
    while entries := reader.read(final=True):
        found += [entry.record for entry in entries]
    return found


def test_a_run_that_another_process_writes_to_is_refused(recording: Path) -> None:
    script = (
        "import sys, unified_tracker as ut\n"
        "from unified_tracker import _start\n"
        "_start.UploaderProcess.start = lambda self: None\n"
        "from unified_tracker import _plugins\n"
        "_plugins.require = lambda backend: None\n"
        "run = ut.start_run('mlflow', id='samesame')\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=recording
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"up\n"
    try:
        with pytest.raises(ut.ConfigurationError, match=r"run samesame .* is being written by another process"):
            ut.start_run("mlflow", id="samesame")
    finally:
        other.kill()
        other.communicate(timeout=30)


def test_environment_is_recorded(recording: Path) -> None:
    with ut.start_run("mlflow", config={"lr": 0.1}) as run:
        pass
    (params,) = [record for record in records(run) if isinstance(record, Params)]
    assert params.values["lr"] == 0.1
    assert params.values["env"]["python"].startswith("3.")
    assert params.values["env"]["packages"]["unified-tracker"] == "0.1.0"


def test_importing_and_logging_loads_no_sdk_and_starts_no_thread(recording: Path) -> None:
    script = (
        "import sys, threading\n"
        "before = set(sys.modules)\n"
        "import unified_tracker as ut\n"
        "heavy = {'mlflow', 'wandb', 'torch', 'numpy', 'typer', 'rich', 'pluggy', 'yaml'}\n"
        "assert not heavy & set(sys.modules), 'import'\n"
        "from unified_tracker import _start\n"
        "_start.UploaderProcess.start = lambda self: None\n"
        "from unified_tracker import _plugins\n"
        "_plugins.require = lambda backend: None\n"
        "run = ut.start_run(['mlflow', 'wandb'], options={'wandb': {'mode': 'offline'}})\n"
        "for i in range(10): run.log_metrics({'x': 1.0}, step=i)\n"
        "run.finish(timeout_s=0)\n"
        "assert not {'mlflow', 'wandb', 'torch', 'numpy', 'requests'} & set(sys.modules), 'log'\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=recording)
    assert threading.main_thread().is_alive()
