"""What `doctor` says about MLflow: the server or database behind a tracking URI. Light, imports no MLflow."""

from __future__ import annotations

import base64
import configparser
import os
import re
import sqlite3
import ssl
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from unified_tracker._probe import Answer, ask, reach, ssl_context
from unified_tracker._tracker import Finding, Level

OLDEST: Final = (2, 16)  # the oldest server that is tested
PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SEARCH: Final = "/api/2.0/mlflow/experiments/search?max_results=1"
WRONG_URI: Final = "MLFLOW_TRACKING_URI must name an MLflow server, with the path that a proxy puts before it"
SIGNERS: Final = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")


def diagnose(options: Mapping[str, Any]) -> list[Finding]:
    """Look at what the tracking URI names: a server, a SQLite file, a database, a folder."""
    uri = str(options["tracking_uri"])
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in {"http", "https"}:
        return _server(uri.rstrip("/"))
    if scheme == "sqlite":
        return [_sqlite(uri)]
    if scheme in PORTS:
        return [_database(uri, PORTS[scheme])]
    if scheme in {"", "file"}:
        return [_folder(uri)]
    return [Finding("mlflow", "ok", f"what stands behind {scheme}: is not looked at")]


def _server(uri: str) -> list[Finding]:
    try:
        context = _certificates()
    except (OSError, ssl.SSLError) as error:
        remedy = "let MLFLOW_TRACKING_SERVER_CERT_PATH name a file of certificates"
        return [Finding("mlflow certificates", "error", f"they cannot be read: {error}", remedy)]
    health = ask(f"{uri}/health", context=context)
    if not health.status:
        remedy = "start the server or correct MLFLOW_TRACKING_URI; a training goes on meanwhile, and nothing is lost"
        return [Finding("mlflow server", "error", f"{uri} does not answer: {health.trouble}", remedy)]
    findings = [_version(uri, health, context), _access(uri, context)]
    if health.clock:
        findings.append(Finding("clock", "warning", health.clock, "set this machine's clock (NTP)"))
    return findings


def _version(uri: str, health: Answer, context: ssl.SSLContext) -> Finding:
    answer = ask(f"{uri}/version", context=context)
    known = re.match(r"(\d+)\.(\d+)", answer.text) if answer.status == 200 else None
    if health.status != 200 and known is None:
        return Finding("mlflow server", "warning", f"{uri}/health answers HTTP {health.status}", WRONG_URI)
    if known is None:
        return Finding("mlflow server", "ok", f"{uri} answers; it does not tell its version")
    text = f"{uri} answers, version {answer.text[:20]}"
    if (int(known[1]), int(known[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding(
            "mlflow server", "warning", f"{text}; servers before {oldest} are not tested", "update the server"
        )
    return Finding("mlflow server", "ok", text)


def _access(uri: str, context: ssl.SSLContext) -> Finding:
    if other := next((name for name in SIGNERS if os.environ.get(name)), None):
        return Finding(
            "mlflow access", "ok", f"{other} is set: requests are signed by MLflow's own client, not tried here"
        )
    name, header = _credentials()
    answer = ask(uri + SEARCH, {"Authorization": header} if header else {}, context=context)
    given = f"credentials from {name}" if name else "no credentials"
    if answer.status == 200:
        return Finding("mlflow access", "ok", f"{given}; the server lets us in")
    if answer.status in {401, 403}:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return Finding("mlflow access", "error", f"{given}; the server refuses (HTTP {answer.status})", remedy)
    if answer.status == 404:
        return Finding("mlflow access", "error", f"{uri} knows no experiments (HTTP 404)", WRONG_URI)
    said = f"answers HTTP {answer.status}" if answer.status else f"does not answer: {answer.trouble}"
    return Finding("mlflow access", "warning", f"{given}; a search for experiments {said}", "look at the server's log")


def _credentials() -> tuple[str, str]:
    """Where MLflow's client would find credentials, and the header that it would send; both "" without."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    source = "MLFLOW_TRACKING_USERNAME"
    if not user:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(Path("~/.mlflow/credentials").expanduser(), encoding="utf-8")
            user = parser.get("mlflow", "mlflow_tracking_username", fallback=None)
            password = parser.get("mlflow", "mlflow_tracking_password", fallback=None)
            source = "~/.mlflow/credentials"
        except (configparser.Error, OSError, RuntimeError, UnicodeDecodeError):
            pass  # damaged: as if it were not there
    if user and password:
        return source, "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "MLFLOW_TRACKING_TOKEN", f"Bearer {token}"
    return "", ""


def _certificates() -> ssl.SSLContext:
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}
    bundle = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    return ssl_context(insecure=insecure, bundle=bundle)


def _sqlite(uri: str) -> Finding:
    name = unquote(re.sub(r"^sqlite(\+\w+)?:///", "", uri).partition("?")[0])
    path = Path(name)
    if not name or ":memory:" in name:
        remedy = "name a file: sqlite:///mlflow.db"
        return Finding("mlflow database", "error", "a database in memory ends with the process that writes it", remedy)
    if not path.parent.is_dir():
        return Finding("mlflow database", "error", f"{path.parent} is no folder", f"mkdir -p {path.parent}")
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            remedy = "choose another MLFLOW_TRACKING_URI"
            return Finding("mlflow database", "error", f"{path.parent} cannot be written", remedy)
        return Finding("mlflow database", "ok", f"{path} will be made")
    try:
        with closing(sqlite3.connect(f"file:{path.as_posix()}?mode=rw", uri=True, timeout=2)) as database:
            database.execute("begin immediate")
            database.execute("rollback")
    except sqlite3.Error as error:
        remedy = "close what holds it, or correct its permissions"
        level: Level = "warning" if "locked" in str(error) else "error"
        return Finding("mlflow database", level, f"{path} cannot be written: {error}", remedy)
    return Finding("mlflow database", "ok", f"{path} can be written")


def _database(uri: str, port: int) -> Finding:
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname or "localhost", parts.port or port
    except ValueError:
        return Finding("mlflow database", "error", "the port in the tracking URI is no number", "correct it")
    if trouble := reach(host, port):
        remedy = "start the database or correct MLFLOW_TRACKING_URI"
        return Finding("mlflow database", "error", f"{host}:{port} does not answer: {trouble}", remedy)
    return Finding("mlflow database", "ok", f"{host}:{port} answers")


def _folder(uri: str) -> Finding:
    remedy = "use sqlite:///mlflow.db; `mlflow migrate-filestore` takes old runs along"
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in {"true", "1"}:
        text = f"{uri} is a folder of files, which MLflow no longer develops; a crash may leave rows twice"
        return Finding("mlflow store", "warning", text, remedy)
    return Finding("mlflow store", "error", f"{uri} is a folder of files, which newer MLflow refuses", remedy)
