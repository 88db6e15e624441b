"""A loopback double of the W&B server: what the real client needs of it, kept in memory, with faults at a switch.

It stands for the hosted service in these points, found by running wandb 0.31 against it: a run is made or resumed by
its id; rows are lines of a file, written at the offset that the client gives, so that a request that comes again
overwrites what it wrote; equal content is one version of an artifact; aliases move. What the hosted service does
beyond that (lags behind, limits rates, samples) it does not do.
"""

# ruff: noqa: N802 -- operations are named as W&B names them
from __future__ import annotations

import base64
import contextlib
import copy
import gzip
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from tests.backends.wandb_artifact_queries import ENTITY, GONE, ArtifactQueries, Version, identity

__all__ = ["ENTITY", "Fault", "ServedRun", "Version", "WandbServer"]
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
STATES: Final = {0: "finished", 1: "failed", 255: "killed"}


@dataclass
class Fault:
    """What happens to the requests that match.

    Attributes:
        match: Pattern for a request's label: "gql/UpsertBucket", "file_stream", "file_stream/rows", "put/<file>".
        status: Answer with it; None: do not answer at all, until the fault is healed.
        after: Do the work first, so that only the answer is lost.
        times: How many requests; None for all.
        body: The answer's body.
    """

    match: str
    status: int | None = 500
    after: bool = False
    times: int | None = None
    body: bytes = b'{"error": "fault"}'
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0
    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class ServedRun:
    """A run as the server holds it."""

    id: str
    project: str
    name: str = ""
    notes: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: str = "{}"
    lines: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, in order."""
        return [json.loads(line) for line in self.lines]

    @property
    def values(self) -> dict[str, Any]:
        """The configuration, without W&B's own part and without the wrapping."""
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}


class WandbServer(ArtifactQueries):
    """The double. Its state may be read at any time; nothing of it is on the disk.

    Attributes:
        runs: By id.
        versions: Committed and pending versions of artifacts, in the order in which they were made.
        problems: What a correct client does not do: gaps between rows, unknown requests, wrong keys.
        requests: How often each label was asked for.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.runs: dict[str, ServedRun] = {}
        self.versions: list[Version] = []
        self.problems: list[str] = []
        self.requests: Counter[str] = Counter()
        self._blobs: dict[str, bytes] = {}
        self._clients: dict[str, str] = {}  # a client's own name of a version to its id
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._port = 0
        self._http: _Listener | None = None
        self.start()

    @property
    def url(self) -> str:
        """Base URL; the same after `stop` and `start`."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the port of the first time."""
        self._http = _Listener(("127.0.0.1", self._port), _handler(self))
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and cut those that are open."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http.cut()
            self._http = None

    def close(self) -> None:
        """End it for good."""
        self.heal()
        self.stop()

    def fault(self, match: str, status: int | None = 500, **more: Any) -> Fault:
        """Switch a fault on. The latest one that matches counts."""
        fault = Fault(match, status, **more)
        with self._lock:
            self._faults.insert(0, fault)
        return fault

    def heal(self) -> None:
        """Switch every fault off; requests that hang are cut."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.over.set()

    def state(self) -> Any:
        """All that it holds, as it is now."""
        with self._lock:
            return copy.deepcopy((self.runs, self.versions, self._blobs, self._clients))

    def restore(self, state: Any) -> None:
        """Hold what it held then; nobody has done anything wrong."""
        with self._lock:
            self.runs, self.versions, self._blobs, self._clients = copy.deepcopy(state)
            self.problems = []

    def committed(self, name: str) -> list[Version]:
        """The versions of an artifact that are complete."""
        with self._lock:
            return [version for version in self.versions if version.name == name and version.state == "COMMITTED"]

    def referred(self, url: str) -> Version | None:
        """The version to a file of which a reference leads."""
        parts = urlsplit(url)
        identity = base64.b64encode(bytes.fromhex(parts.netloc)).decode() if parts.scheme == "wandb-artifact" else ""
        return next((version for version in self.versions if version.id == identity), None)

    # ---- requests ----------------------------------------------------------------------------------------------

    def _fault_of(self, label: str) -> Fault | None:
        with self._lock:
            self.requests[label] += 1
            for fault in self._faults:
                if (fault.times is None or fault.hits < fault.times) and re.search(fault.match, label):
                    fault.hits += 1
                    return fault
        return None

    def _answer(self, label: str, path: str, body: bytes) -> Any:
        """Do what a request asks for. Returns the JSON to send, or bytes; None if there is no such thing."""
        with self._lock:
            if label.startswith("gql/"):
                asked = json.loads(body)
                operation = getattr(self, f"_{label[4:]}", None)
                if operation is None:
                    self.problems.append(f"unknown operation {label}: {asked['query'][:2000]}")
                    return {"errors": [{"message": f"unknown operation {label}"}]}
                return {"data": operation(asked.get("variables") or {})}
            if label.startswith("file_stream"):
                return self._file_stream(path.split("/")[-2], json.loads(body))
            if label.startswith("put/"):
                self._store(unquote(path.removeprefix("/storage/")), body)
            elif label.startswith("get/"):
                return self._blobs.get(unquote(path.removeprefix("/storage/")), b"")
            elif label == "get artifact":
                return self._bytes_of(re.findall(r"/([0-9a-f]{32})(?:/|$)", path)[-1])
            elif label != "otel":
                self.problems.append(f"unknown request {label} {path}")
            return {}

    def _file_stream(self, run_id: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(run_id)
        if run is None:
            return None
        for name, part in (asked.get("files") or {}).items():
            if name == HISTORY:
                first = part["offset"]
                if first > len(run.lines):
                    self.problems.append(f"{run_id}: rows from {first}, but only {len(run.lines)} are there")
                run.lines[first : first + len(part["content"])] = part["content"]
            elif name == SUMMARY:
                run.summary = part["content"][-1]
        if asked.get("complete"):
            run.exit_code = asked.get("exitcode")
            run.state = STATES.get(run.exit_code or 0, "failed")
        return {}

    def _store(self, where: str, body: bytes) -> None:
        self._blobs[where] = body
        kind, owner, name = where.split("/", 2)
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self._version(owner).manifest = body
        else:
            self._version(owner).files[name] = body

    def _upload_url(self, kind: str, owner: str, name: str) -> str:
        return f"{self.url}/storage/{kind}/{owner}/{quote(name)}"

    # ---- operations: accounts ----------------------------------------------------------------------------------

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "u", "entity": ENTITY, "username": "user", "email": "", "flags": "{}", "admin": False}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _ServerInfo(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    # ---- operations: runs --------------------------------------------------------------------------------------

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], ServedRun(given["name"], given["project"]))
        run.state = "running" if new or given.get("state") == "running" else run.state
        for ours, theirs in [("name", "displayName"), ("notes", "notes"), ("group", "groupName"), ("tags", "tags")]:
            if given.get(theirs) is not None:
                setattr(run, ours, given[theirs])
        if given.get("config"):
            run.config = json.loads(given["config"])
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {**self._run_fields(run), "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        bucket = None
        if run is not None:
            tails = {"historyTail": json.dumps(run.lines[-1:]), "eventsTail": "[]"}
            counts = {"logLineCount": 0, "eventsLineCount": 0}
            bucket = {**self._run_fields(run), **tails, **counts, "wandbConfig": json.dumps({"t": 1})}
        return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def _Run(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        return {"project": {"run": self._run_fields(run) if run is not None else None}}

    def _RunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[given["name"]]
        names = [name for name in sorted(run.files) if not given.get("fileNames") or name in given["fileNames"]]
        first = int(given.get("fileCursor") or 0)
        page = names[first : first + given["fileLimit"]]
        edges = [
            {"node": self._file_fields(run, name), "cursor": str(first + number)} for number, name in enumerate(page, 1)
        ]
        more = first + len(page) < len(names)
        files = {"edges": edges, "pageInfo": {"endCursor": str(first + len(page)), "hasNextPage": more}}
        return {"project": {"internalId": "1", "run": {"fileCount": len(run.files), "files": files}}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": self._upload_url("run", given["run"], name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _run_fields(self, run: ServedRun) -> dict[str, Any]:
        return {
            "id": f"id-{run.id}",
            "projectId": "1",
            "name": run.id,
            "displayName": run.name or run.id,
            "description": None,
            "notes": run.notes,
            "tags": run.tags,
            "group": run.group,
            "jobType": run.job_type,
            "sweepName": None,
            "state": run.state,
            "config": json.dumps(run.config),
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "systemMetrics": "{}",
            "summaryMetrics": run.summary,
            "historyLineCount": len(run.lines),
            "historyKeys": {"lastStep": run.rows[-1]["_step"] if run.lines else -1, "keys": {}},
            "user": {"name": "user", "username": "user"},
        }

    def _file_fields(self, run: ServedRun, name: str) -> dict[str, Any]:
        content = run.files[name]
        url = f"{self.url}/storage/run/{run.id}/{quote(name)}"
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        fields = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": len(content), "md5": md5}
        return {**fields, "mimetype": "", "updatedAt": "2026-01-01T00:00:00Z"}

    # ---- operations: artifacts ---------------------------------------------------------------------------------

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        name, digest = asked["artifactCollectionName"], asked["digest"]
        project = asked["projectName"]
        known = [version for version in self.versions if (version.project, version.name) == (project, name)]
        same = [version for version in known if version.digest == digest and version.state != GONE]
        if same:
            version = same[0]
        else:
            metadata = json.loads(asked.get("metadata") or "{}")
            number = len(self.versions)
            version = Version(identity(number), name, asked["artifactTypeName"], digest, metadata, len(known))
            version.project, version.run = project, asked.get("runName") or ""
            version.created = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z"
            self.versions.append(version)
        self._clients[asked["clientID"]] = version.id
        version.wanted = {item["alias"] for item in asked.get("aliases") or []}
        if version.state == "COMMITTED":
            self._move_aliases(version)
        latest = next((other for other in known if "latest" in other.aliases), None)
        sequence = {"latestArtifact": {"id": latest.id} if latest is not None else None}
        created = {"id": version.id, "state": version.state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": created}}

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        known = [version for version in self.versions if version.name == given["name"].partition(":")[0]]
        return {"project": {"artifact": {"artifactType": {"name": known[0].type}} if known else None}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        manifest = self._manifest_fields(given["artifactID"], given["name"])
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        manifest = self._manifest_fields(given["artifactManifestID"], "wandb_manifest.json")
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for asked in given["input"]["artifactFiles"]:
            owner, name = asked["artifactID"], asked["name"]
            node = {"storagePath": f"{owner}/{name}", "uploadUrl": self._upload_url("artifact", owner, name)}
            edges.append(
                {"node": {**node, "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": owner}}}
            )
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        version = self._version(given["artifactID"])
        for path, entry in json.loads(version.manifest)["contents"].items():
            if "ref" in entry:  # what it leads to may be on its way still
                if urlsplit(entry["ref"]).scheme.startswith("wandb") and self.referred(entry["ref"]) is None:
                    self.problems.append(f"{version.name}: {path} refers to nothing: {entry['ref']}")
                continue
            content = version.files.get(path)
            if content is None or base64.b64encode(hashlib.md5(content).digest()).decode() != entry["digest"]:
                self.problems.append(f"{version.name}: committed without the right bytes of {path}")
        version.state = "COMMITTED"
        self._move_aliases(version)
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _ClientIDMapping(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = self._clients.get(given["clientID"])
        return {"clientIDMapping": None if identity is None else {"serverID": identity}}

    def _manifest_fields(self, owner: str, name: str) -> dict[str, Any]:
        url = self._upload_url("manifest", owner, name)
        return {"id": owner, "file": {"id": f"m{owner}", "uploadUrl": url, "uploadHeaders": []}}

    def _move_aliases(self, version: Version) -> None:
        wanted = {*version.wanted, "latest"}
        for other in self.versions:
            if (other.project, other.name) == (version.project, version.name):
                other.aliases -= wanted
        version.aliases |= wanted


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are cut on purpose."""

    def cut(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            path = urlsplit(self.path).path
            label = _label(self.command, path, body)
            fault = server._fault_of(label)
            if fault is not None:
                if fault.after:
                    server._answer(label, path, body)
                if fault.status is None:
                    fault.over.wait()
                    self.close_connection = True
                else:
                    self._send(fault.status, fault.body, fault.headers)
                return
            if label.startswith(("gql/", "file_stream")) and not self._has_key():
                self._send(401, b'{"errors": [{"message": "user is not logged in"}]}', {})
                return
            try:
                answer = server._answer(label, path, body)
            except Exception as error:  # noqa: BLE001 -- tests look at `problems`
                server.problems.append(f"{label}: {error!r}")
                self._send(500, b"{}", {})
                return
            status = 404 if answer is None else 200
            self._send(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), {})

        def _has_key(self) -> bool:
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            return scheme == "Basic" and base64.b64decode(given).decode() == f"api:{server.key}"

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _label(method: str, path: str, body: bytes) -> str:
    """What a request is, as `Fault.match` names it."""
    if path.endswith("/graphql"):
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", json.loads(body)["query"])
        return f"gql/{found.group(1) if found else ''}"
    if path.endswith("/file_stream"):
        files = json.loads(body).get("files") or {}
        return "file_stream/rows" if files.get(HISTORY, {}).get("content") else "file_stream"
    if path.startswith("/storage/"):
        return f"{method.lower()}/{unquote(path.removeprefix('/storage/'))}"
    if method == "GET" and path.startswith("/artifacts"):
        return "get artifact"
    return "otel" if "/otel/" in path else f"{method.lower()} {path}"
