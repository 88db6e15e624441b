"""`sync --online`: a W&B run that was recorded offline, delivered from its journal; by the real client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("wandb")

from tests.backends.wandb_feeding import KEY, clean_environment
from unified_tracker._delivery import Delivery, deliveries
from unified_tracker._errors import ConfigurationError

TRAINING = """
import unified_tracker as ut
with ut.start_run("wandb", project="balloon", name="first", options={"wandb": {"mode": "offline"}}) as run:
    run.log_params({"lr": 0.1})
    for step in range(50):
        run.log_metrics({"loss": 1 / (step + 1)}, step=step)
"""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with one finished offline run; returns W&B's folder of it."""
    clean_environment(monkeypatch, tmp_path)
    paths = os.pathsep.join(path for path in sys.path if path)
    monkeypatch.setenv("PYTHONPATH", paths)
    subprocess.run([sys.executable, "-c", TRAINING], check=True, timeout=120)
    (delivery,) = deliveries([Path()])
    assert delivery.report().outcome == "delivered"
    (folder,) = Path("wandb").glob("offline-run-*")
    return folder.absolute()


def the_run() -> Delivery:
    (delivery,) = deliveries([Path()])
    return delivery


def sync(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unified_tracker.cli", "sync", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def test_without_a_key_nothing_changes(offline: Path) -> None:
    done = sync("--online")
    assert (done.returncode, "wandb login" in done.stderr) == (1, True)
    assert the_run().report().outcome == "delivered"
    assert not list(offline.glob("*.synced"))


@pytest.mark.parametrize("mark", [".synced", ".syncstate"])
def test_what_wandb_sync_has_uploaded_is_not_delivered_again(
    offline: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (file,) = offline.glob("*.wandb")
    file.with_name(file.name + mark).touch()
    with pytest.raises(ConfigurationError, match="its rows would stand twice"):
        the_run().go_online()
    report = the_run().report()
    assert report.outcome == "delivered" and report.backends[0].address == str(offline)


def test_a_server_that_is_away_leaves_it_pending_and_wandb_sync_out_of_it(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    the_run().go_online()
    report = the_run().report()
    assert (report.outcome, report.backends[0].pending) == ("pending", the_run()._journal.records_after(0))
    assert the_run().info.backends["wandb"]["mode"] == "online"
    command = [sys.executable, "-m", "wandb", "sync", "--yes", str(offline)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Skipped 1 synced run" in said.stdout + said.stderr


def test_it_is_delivered_from_its_first_row_and_once(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles = pytest.importorskip("tests.backends.wandb_server")
    server = doubles.WandbServer(KEY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    try:
        done = sync("--online", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        (report,) = msgspec.json.decode(done.stdout)
        assert report["backends"][0]["address"].startswith("http")
        run = server.runs[report["run"]]
        assert [row["loss"] for row in run.rows if "loss" in row] == [1 / (step + 1) for step in range(50)]
        assert run.values["lr"] == 0.1
        assert list(offline.glob("*.synced"))
        assert sync("--online").returncode == 0  # a second time there is nothing to do
        assert len([row for row in run.rows if "loss" in row]) == 50
    finally:
        server.close()
