"""The doctor: what it finds, that it hides secrets, and that it needs neither backend nor framework."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unified_tracker import Finding, _doctor
from unified_tracker._probe import ask, reach
from unified_tracker.backends import _mlflow, _wandb
from unified_tracker.cli import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, no settings and no credentials of this user."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_", "UNIFIED_TRACKER")) or name == "NETRC":
            monkeypatch.delenv(name)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(work)
    return work


class Server:
    """A web server that answers what a test wants, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {"/health": (200, "OK"), "/version": (200, "3.17.2")}
        self.redirect_to = ""
        self.ahead_s = 0.0
        self.asked: list[tuple[str, str | None]] = []

        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.asked.append((path, self.headers.get("Authorization")))
                code, text = server.answers.get(path, (404, ""))
                self.send_response_only(302 if server.redirect_to else code)
                if server.redirect_to:
                    self.send_header("Location", server.redirect_to)
                self.send_header("Date", formatdate(time.time() + server.ahead_s, usegmt=True))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def let_in(self, code: int = 200) -> None:
        self.answers["/api/2.0/mlflow/experiments/search"] = (code, "{}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def of(findings: list[Finding], check: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.message) for finding in findings if finding.check == check]


def mlflow(uri: str) -> list[Finding]:
    return _mlflow.diagnose(_mlflow.check({"tracking_uri": uri}))


# ---- the whole -----------------------------------------------------------------------------------------------------


def test_its_exit_status_says_whether_there_is_an_error() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    findings = json.loads(result.stdout)
    assert result.exit_code == int(any(finding["level"] == "error" for finding in findings))
    assert {"python", "packages", "tracker", "run directory", "disk", "uploader", "runs"} <= {
        finding["check"] for finding in findings
    }
    for finding in findings:
        assert finding["level"] == "ok" or finding["remedy"]
        assert "\n" not in finding["message"]


def test_it_works_where_no_backend_and_no_framework_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_tracker._plugins.entry_points", lambda group: [])
    monkeypatch.setattr(_doctor, "_version", lambda name: None)
    findings = _doctor.examine(Path())
    ((level, message),) = of(findings, "tracker")
    assert (level, "no tracker backend named 'mlflow'" in message) == ("error", True)
    assert of(findings, "uploader") == [("ok", "it can be started")]


def test_a_missing_client_is_an_error_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("UNIFIED_TRACKER", "wandb")
    findings = _doctor.examine(Path())
    (finding,) = [each for each in findings if each.check == "tracker" and each.level == "error"]
    assert finding.remedy == 'pip install "unified-tracker[wandb]"'
    ((level, message),) = of(findings, "mlflow")
    assert (level, message.startswith("not asked for")) == ("ok", True)


def test_a_wrong_configuration_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_tracker._plugins.require", lambda backend: None)  # also where no client is installed
    (folder / "tracker.yaml").write_text("tracker: mlflow\noptions: {mlflow: {tracking_url: x}}\n")
    errors = [message for level, message in of(_doctor.examine(folder), "tracker") if level == "error"]
    assert len(errors) == 1 and "did you mean 'tracking_uri'?" in errors[0]


def test_one_look_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> Iterator[Finding]:
        yield Finding("disk", "ok", "fine so far")
        raise OSError("Stale file handle")

    monkeypatch.setattr(_doctor, "_place", broken)
    findings = _doctor.examine(Path())
    assert of(findings, "disk") == [("ok", "fine so far")]
    assert ("warning", "cannot be looked at: OSError: Stale file handle") in of(findings, "broken")
    assert of(findings, "uploader") == [("ok", "it can be started")]


SECRETS = ("canaryuser", "canarypassword", "canarytoken" * 4, "canarykey" * 5, "canarysql", "canarynetrc" * 4)


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
@pytest.mark.parametrize(
    "uri", ["http://canaryuser:canarypassword@127.0.0.1:9/x", "postgresql://canaryuser:canarysql@127.0.0.1:9/db"]
)
def test_no_secret_is_ever_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], uri: str
) -> None:
    monkeypatch.setattr("unified_tracker._plugins.require", lambda backend: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canarytoken" * 4)
    monkeypatch.setenv("WANDB_API_KEY", "canarykey" * 5)
    monkeypatch.setenv("WANDB_BASE_URL", "http://canaryuser:canarypassword@127.0.0.1:9")
    (tmp_path / "home" / ".netrc").write_text(f"machine 127.0.0.1:9 login user password {'canarynetrc' * 4}\n")
    (tmp_path / "home" / ".netrc").chmod(0o600)
    (folder / "tracker.yaml").write_text("tracker: [mlflow, wandb]\n")
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert "127.0.0.1:9" in result.output
    for secret in SECRETS:
        assert secret not in result.output


# ---- servers -------------------------------------------------------------------------------------------------------


def test_a_server_that_answers_tells_its_version_and_lets_us_in(server: Server) -> None:
    server.let_in()
    findings = mlflow(server.uri)
    assert of(findings, "mlflow server") == [("ok", f"{server.uri} answers, version 3.17.2")]
    assert of(findings, "mlflow access") == [("ok", "no credentials; the server lets us in")]
    assert of(findings, "clock") == []


def test_an_old_server_is_warned_about(server: Server) -> None:
    server.answers["/version"] = (200, "2.9.1")
    assert of(mlflow(server.uri), "mlflow server")[0][0] == "warning"


def test_a_web_server_that_is_no_mlflow_server_is_an_error(server: Server) -> None:
    server.answers.clear()
    findings = mlflow(server.uri)
    assert [finding.level for finding in findings] == ["warning", "error"]
    assert "MLFLOW_TRACKING_URI" in findings[1].remedy


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_clock_that_differs_from_the_server_s_is_warned_about(server: Server, ahead_s: float) -> None:
    server.ahead_s = ahead_s
    ((level, message),) = of(mlflow(server.uri), "clock")
    assert (level, ("behind" if ahead_s > 0 else "ahead of") in message) == ("warning", True)


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}, "Basic bWU6cHc="),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({}, None),
    ],
)
def test_refused_credentials_are_an_error_and_sent_only_where_they_belong(
    server: Server, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], header: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server.let_in(401)
    findings = mlflow(server.uri)
    ((level, message),) = of(findings, "mlflow access")
    assert (level, "refuses (HTTP 401)" in message) == ("error", True)
    assert [sent for path, sent in server.asked if path.endswith("/search")] == [header]
    assert all(sent is None for path, sent in server.asked if not path.endswith("/search"))


def test_credentials_do_not_follow_a_redirect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    server.redirect_to = elsewhere.uri
    mlflow(server.uri)
    elsewhere.http.shutdown()
    elsewhere.http.server_close()
    assert server.asked and not elsewhere.asked


def test_a_server_that_is_away_is_an_error_and_so_is_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert of(mlflow("http://127.0.0.1:9"), "mlflow server")[0][0] == "error"
    assert of(mlflow("mysql+pymysql://u:p@127.0.0.1:9/db"), "mlflow database")[0][0] == "error"


def test_a_server_that_does_not_answer_is_given_up_soon(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_tracker._probe.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = ask(f"http://127.0.0.1:{silent.getsockname()[1]}/health")
    assert (answer.status, "no answer" in answer.trouble) == (0, True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://[/", "http://no.such.host.invalid/", "http:///x"])
def test_addresses_that_make_no_sense_are_trouble_not_errors(url: str) -> None:
    assert ask(url).trouble
    assert reach("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    ("mode", "checks"),
    [
        ("online", {"wandb server": "ok", "wandb key": "error"}),
        ("offline", {"wandb folder": "ok", "wandb key": "ok"}),
        ("disabled", {"wandb mode": "warning"}),
    ],
)
def test_wandb_needs_what_its_mode_needs(
    server: Server, monkeypatch: pytest.MonkeyPatch, mode: str, checks: dict[str, str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.uri)
    findings = _wandb.diagnose(_wandb.check({"mode": mode}))
    assert {finding.check: finding.level for finding in findings} == checks


# ---- files and packages --------------------------------------------------------------------------------------------


def test_a_database_that_somebody_holds_is_warned_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert of(mlflow(uri), "mlflow database") == [("ok", f"{folder / 'mlflow.db'} will be made")]
    database = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    database.execute("create table runs (id)")
    assert of(mlflow(uri), "mlflow database") == [("ok", f"{folder / 'mlflow.db'} can be written")]
    database.execute("begin exclusive")
    ((level, message),) = of(mlflow(uri), "mlflow database")
    assert (level, "locked" in message) == ("warning", True)
    database.close()
    (folder / "mlflow.db").write_bytes(b"no database" * 100)
    assert of(mlflow(uri), "mlflow database")[0][0] == "error"


def test_stores_that_newer_mlflow_refuses_are_an_error(folder: Path) -> None:
    assert of(mlflow(str(folder / "mlruns")), "mlflow store")[0][0] == "error"
    assert of(mlflow("sqlite:///:memory:"), "mlflow database")[0][0] == "error"
    assert of(mlflow(f"sqlite:///{folder}/nowhere/mlflow.db"), "mlflow database")[0][0] == "error"


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /home nfs4 rw 0 0
tmpfs /home/me/in\\040memory tmpfs rw 0 0
overlay /var overlay rw 0 0
//nas/share /mnt/share cifs rw 0 0
sshfs /mnt/ssh fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "level"),
    [
        ("/data/runs", "ext4", "ok"),
        ("/home/me/runs", "nfs4", "warning"),
        ("/home/me/in memory/runs", "tmpfs", "warning"),
        ("/homework", "ext4", "ok"),
        ("/var/lib", "overlay", "ok"),
        ("/mnt/share", "cifs", "warning"),
        ("/mnt/ssh/x", "fuse.sshfs", "warning"),
    ],
)
def test_file_systems_of_the_network_are_warned_about(tmp_path: Path, path: str, kind: str, level: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert _doctor.file_system(Path(path), tmp_path / "mounts") == kind
    assert _doctor._file_system(kind).level == level


def test_without_proc_nothing_is_said_about_file_systems(tmp_path: Path) -> None:
    assert _doctor.file_system(tmp_path, tmp_path / "mounts") == ""


@pytest.mark.parametrize(
    ("versions", "checks"),
    [
        ({"torch": "2.1.2", "numpy": "1.26.4"}, []),
        ({"torch": "2.1.2+cu118", "numpy": "2.1.0"}, ["numpy"]),
        ({"torch": "2.3.0", "numpy": "2.1.0"}, []),
        ({"mmdet": "3.3.0", "mmcv": "2.2.0"}, ["mmcv"]),
        ({"mmdet": "3.3.0", "mmcv": "2.1.0"}, []),
        ({"torch": "2.6.0", "mmengine": "0.10.7"}, ["torch"]),
    ],
)
def test_packages_that_do_not_go_together_are_named(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], checks: list[str]
) -> None:
    monkeypatch.setattr(_doctor, "_version", versions.get)
    monkeypatch.setattr(_doctor, "_importable", lambda name: True)
    assert [finding.check for finding in _doctor._incompatibilities(Path())] == checks


def test_an_uploader_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    ((level, message),) = of(list(_doctor._uploader(Path())), "uploader")
    assert (level, "No such file" in message) == ("error", True)


def test_a_disk_that_is_nearly_full_is_told(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import shutil
    from types import SimpleNamespace

    for free, level in ((100 << 20, "error"), (1 << 30, "warning"), (50 << 30, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert of(list(_doctor._place(folder)), "disk")[0][0] == level
