"""A proxy in front of a server that goes wrong on demand. Threads of the test's own process; HTTP/1.1."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["reset", "black_hole", "delay", "status", "drop_answer", "cut", "partial"]
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"}


@dataclass(frozen=True)
class Request:
    """What the proxy was asked."""

    method: str
    path: str
    body: bytes


@dataclass
class Fault:
    """What goes wrong, with which requests, how many times.

    reset: the connection is reset, nothing is forwarded. black_hole: no answer until the proxy is calmed. delay: it is
    forwarded after `seconds`, whoever still waits for it. status: answered by the proxy. drop_answer: the server has
    taken it, the answer is lost. cut: of the answer, half of the body arrives. partial: of the request's body a `share`
    is forwarded, then both connections are reset.
    """

    kind: Kind
    matches: Callable[[Request], bool] = lambda request: True
    times: int | None = None
    seconds: float = 0.0
    share: float = 0.5
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = "made up by the proxy"


class FaultProxy:
    """`url` leads to the server through whatever `fault`, `chaos` and `refuse` have ordered; `calm` ends it."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.counts: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._chaos: Callable[[], Fault | None] = lambda: None
        self._calm = threading.Event()
        self._refusing = False
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port: int = self._listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def fault(self, kind: Kind, **how: Any) -> Fault:
        """Let something go wrong; the first fault that matches a request and has `times` left is taken."""
        found = Fault(kind, **how)
        with self._lock:
            self._faults.append(found)
            self._calm.clear()
        return found

    def chaos(self, seed: int, probability: float) -> None:
        """Let anything go wrong at random."""
        dice = random.Random(seed)
        choices: list[Fault] = [
            Fault("reset"),
            Fault("drop_answer"),
            Fault("drop_answer"),
            Fault("cut"),
            Fault("status", status=500),
            Fault("status", status=503),
            Fault("status", status=429, headers={"Retry-After": "0"}),
            Fault("delay", seconds=0.3),
        ]
        self._chaos = lambda: dice.choice(choices) if dice.random() < probability else None

    def calm(self) -> None:
        """From now on everything goes well; requests in a black hole are reset."""
        with self._lock:
            self._faults.clear()
            self._chaos = lambda: None
            self._calm.set()

    def refuse(self) -> None:
        """Stop listening: connections are refused, those that are open are reset."""
        self._refusing = True
        self._listener.shutdown()
        self._listener.server_close()

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._refusing = False
        self._listener = self._listen(self.port)

    def close(self) -> None:
        """Stop for good."""
        self.calm()
        self.refuse()

    def writes(self) -> list[Request]:
        """Requests that change something."""
        return [request for request in self.requests if request.method != "GET" and not request.path.endswith("search")]

    def _listen(self, port: int) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"proxy": self})
        for _ in range(50):
            try:
                listener = ThreadingHTTPServer(("127.0.0.1", port), handler)
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise OSError(f"port {port} is not free")
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return listener

    def choose(self, request: Request) -> Fault | None:
        """What happens to a request."""
        with self._lock:
            if self._refusing:
                return Fault("reset")
            self.requests.append(request)
            for fault in self._faults:
                if fault.times != 0 and fault.matches(request):
                    if fault.times is not None:
                        fault.times -= 1
                    self.counts[fault.kind] += 1
                    return fault
            fault_or_none = self._chaos()
            if fault_or_none is not None:
                self.counts[fault_or_none.kind] += 1
            return fault_or_none

    def wait_for_calm(self) -> None:
        """What a request in a black hole does."""
        self._calm.wait(600)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (TimeoutError, ConnectionError, ValueError):
            self.close_connection = True

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.choose(Request(self.command, urlsplit(self.path).path, body))
        if fault is None:
            self._answer(*self._forward(body))
        elif fault.kind == "status":
            headers = {"Content-Type": "text/plain", **fault.headers}
            self._answer(fault.status, list(headers.items()), fault.text.encode())
        elif fault.kind == "delay":
            time.sleep(fault.seconds)
            self._answer(*self._forward(body))
        elif fault.kind == "drop_answer":
            self._forward(body)
            self._reset()
        elif fault.kind == "cut":
            self._answer(*self._forward(body), cut=True)
        elif fault.kind == "partial":
            self._forward_part(body, fault.share)
            self._reset()
        else:
            if fault.kind == "black_hole":
                self.proxy.wait_for_calm()
            self._reset()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = relay  # noqa: N815 -- the names http.server looks for

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = self.proxy.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _forward_part(self, body: bytes, share: float) -> None:
        target = self.proxy.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[: int(len(body) * share)])
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass
