"""The options of the W&B backend: what a call, the environment and W&B's own files say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.backends.wandb_feeding import KEY, TS, Feeder, clean_environment, info
from unified_tracker._errors import ConfigurationError
from unified_tracker._start import RunSettings
from unified_tracker.backends import _wandb
from unified_tracker.backends._wandb import check


@pytest.fixture(autouse=True)
def no_trace_of_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_mode_is_online_with_a_key_and_offline_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert check({})["mode"] == "offline"
    assert "offline" in capsys.readouterr().err
    assert check({"mode": "offline"})["mode"] == "offline"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert check({})["mode"] == "online"
    assert KEY not in json.dumps(check({}))
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert check({})["mode"] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    assert check({})["mode"] == "offline"


@pytest.mark.parametrize(("given", "mode"), [("dryrun", "offline"), ("disabled", "disabled"), ("online", "online")])
def test_wandb_mode_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch, given: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", given)
    assert check({})["mode"] == mode


def test_wandb_variables_keep_their_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PROJECT", "ENTITY", "NAME", "RUN_GROUP", "JOB_TYPE", "TAGS", "NOTES", "RUN_ID", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    checked = check({"mode": "offline", "group": "mine"})
    assert checked == {
        "mode": "offline",
        "entity": "entity",
        "group": "mine",
        "job_type": "job_type",
        "run_id": "run_id",
        "dir": str(tmp_path / "work/dir"),
        "project": "project",
        "name": "name",
        "notes": "notes",
        "tags": "tags",
    }


def test_misspelt_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="'entity'"):
        check({"entitiy": "x"})
    with pytest.raises(ConfigurationError, match="mode"):
        check({"mode": "ofline"})
    with pytest.raises(ConfigurationError, match="names must be 'mmdet2'"):
        check({"mode": "offline", "names": "mmdet3"})
    assert check({"mode": "offline", "names": "mmdet2"})["names"] == "mmdet2"


def test_an_active_run_gets_a_neighbour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    active = SimpleNamespace(id="theirs", group="", project="p", entity="e", offline=True, disabled=False)
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=active))
    checked = check({})
    wanted = {"run_id": None, "group": "theirs", "project": "p", "entity": "e", "mode": "offline"}
    assert {key: checked[key] for key in wanted} == wanted
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_disabled_keeps_nothing(tmp_path: Path) -> None:
    tracker = _wandb.create(info(tmp_path), tmp_path, {"mode": "disabled"})
    tracker.open(info(tmp_path))
    tracker.log_metrics([Feeder(tmp_path).metrics(1, loss=1)])
    tracker.close("FINISHED", TS)
    assert list(tmp_path.rglob("offline-run-*")) == []
    assert "wandb" not in sys.modules


def test_run_that_only_evaluates_says_so_unless_the_user_has() -> None:
    offline = {"mode": "offline"}
    kinds = {}
    for given in (None, "ablation"):
        settings = RunSettings.resolve("wandb", options={"wandb": {**offline, "job_type": given}})
        kinds[given] = settings.for_evaluation().backends["wandb"]["job_type"]
        assert settings.backends["wandb"]["job_type"] == given
    assert kinds == {None: "eval", "ablation": "ablation"}
