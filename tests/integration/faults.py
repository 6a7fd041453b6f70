"""A proxy in front of an S3 server that injects faults.

The Host header is forwarded unchanged, since S3's signatures cover it.
"""

import http.client
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal[
    "error", "slow_down", "expired", "hang", "drop", "drop_answer", "truncate", "alter", "alter_sent", "trickle", "skew"
]
"""500; 503 SlowDown; 400 ExpiredToken; no answer in time; connection closed before the request is forwarded; the same
after the server executes it; half of the answer's body; one changed byte in it; one changed byte in the request's body;
the body in pieces, after a pause each; a `Date` of tomorrow."""

HANG_SECONDS = 1.5
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
PIECES = 6
LONGEST_HOLD = 60.0
"""Seconds after which a held request is released in any case."""
REFUSALS = {"error": (500, "InternalError"), "slow_down": (503, "SlowDown"), "expired": (400, "ExpiredToken")}


@dataclass
class Fault:
    kind: Kind
    times: int
    method: str
    key: str


class Held:
    """A request that the proxy holds: `before` it is forwarded to the server, or after the response arrived."""

    def __init__(self, method: str, key: str, *, before: bool) -> None:
        self.method, self.key, self.before = method, key, before
        self.reached = threading.Event()
        self._released = threading.Event()
        self._drop = False

    def release(self, *, drop: bool = False) -> None:
        """Release it. `drop`: discard the request, or its response."""
        self._drop = drop
        self._released.set()

    def wait(self) -> bool:
        """Block the request's thread until the release. Return whether to discard it."""
        self.reached.set()
        self._released.wait(LONGEST_HOLD)
        return self._drop


class FaultProxy:
    """`fail(...)` plans faults; each hits the next requests that fit, `hits` counts them. `uploaded` and `downloaded`
    are bytes of bodies."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.hits = 0
        self.requests = 0
        self.uploaded = self.downloaded = 0
        self.hidden: set[str] = set()
        """Headers of answers that the client does not get, in lower case."""
        self.unsigned_bodies = 0
        self.url = ""
        self._gets: list[str] = []
        self._planned: list[Fault] = []
        self._held: list[Held] = []
        self._lock = threading.Lock()

    def fail(self, kind: Kind, times: int = 1, *, method: str = "GET", key: str = "") -> None:
        """The next `times` requests with that method whose path, query and `Range` contain `key`."""
        with self._lock:
            self._planned.append(Fault(kind, times, method, key))

    def hold(self, key: str, *, method: str = "PUT", before: bool) -> Held:
        """Hold the next matching request until it is released."""
        held = Held(method, key, before=before)
        with self._lock:
            self._held.append(held)
        return held

    def let_go(self, held: Held) -> None:
        """Stop holding it; release it if it has arrived."""
        with self._lock:
            if held in self._held:
                self._held.remove(held)
        held.release()

    def next_held(self, method: str, path: str) -> Held | None:
        with self._lock:
            for held in self._held:
                if held.method == method and held.key in path:
                    self._held.remove(held)
                    return held
        return None

    def be_away(self) -> None:
        """Drop every request until `clear`."""
        for method in METHODS:
            self.fail("drop", 1 << 30, method=method)

    def clear(self) -> None:
        with self._lock:
            self._planned.clear()
            self.hidden.clear()
            self.hits = self.requests = self.uploaded = self.downloaded = self.unsigned_bodies = 0

    def gets_of(self, key: str) -> int:
        """Return the number of reads of objects whose path contains `key`."""
        with self._lock:
            return sum(key in path for path in self._gets)

    def count(self, uploaded: int = 0, downloaded: int = 0, unsigned: bool = False) -> None:
        with self._lock:
            self.uploaded += uploaded
            self.downloaded += downloaded
            self.unsigned_bodies += unsigned

    def next_fault(self, method: str, path: str, only: str) -> Kind | None:
        with self._lock:
            self.requests += 1
            if method == "GET":
                self._gets.append(path.partition("?")[0])
            for fault in self._planned:
                if fault.times > 0 and fault.method == method and fault.key in f"{path} {only}":
                    fault.times -= 1
                    self.hits += 1
                    return fault.kind
        return None


@contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """Serve on a free loopback port until the block ends."""
    proxy = FaultProxy(target)

    class Handler(_Handler):
        faults = proxy

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has been killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultProxy

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.faults.count(len(body), unsigned=self.headers.get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD")
        if len(body) < length:  # the client is gone
            self.close_connection = True
            return
        held = self.faults.next_held(self.command, self.path)
        if held is not None and held.before and held.wait():
            self.close_connection = True
            return
        kind = self.faults.next_fault(self.command, self.path, self.headers.get("Range", ""))
        if kind in REFUSALS:
            self._refuse(kind)
        elif kind in ("hang", "drop"):
            time.sleep(HANG_SECONDS if kind == "hang" else 0)
            self.close_connection = True
        else:
            self._forward(body, kind, None if held is None or held.before else held)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 (names of http.server)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _refuse(self, kind: Kind) -> None:
        status, code = REFUSALS[kind]
        body = f"<Error><Code>{code}</Code><Message>planned by a test</Message></Error>".encode()
        self._answer(status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)

    def _forward(self, body: bytes, kind: Kind | None, held: Held | None) -> None:
        if kind == "alter_sent":
            body = _altered(body)
        connection = http.client.HTTPConnection(self.faults.target, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if (held is not None and held.wait()) or kind == "drop_answer":
            self.close_connection = True
            return
        left_out = {"connection", "transfer-encoding", *self.faults.hidden}
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in left_out}
        if self.command != "HEAD" and answer.status != 204:
            headers["Content-Length"] = str(len(content))
        if kind == "alter" and content:
            content = _altered(content)
        if kind == "truncate":
            content = content[: len(content) // 2]
            self.close_connection = True
        if kind == "skew":
            headers["Date"] = formatdate(time.time() + 86400, usegmt=True)
        self._answer(answer.status, headers, content, slowly=kind == "trickle")

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, slowly: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            size = -(-len(body) // PIECES) if slowly else len(body)
            for start in range(0, len(body), size or 1):
                time.sleep(HANG_SECONDS / 3 if slowly else 0)
                self.wfile.write(body[start : start + size])
            self.faults.count(downloaded=len(body))


def _altered(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
