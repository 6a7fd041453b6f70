"""An HTTP server that sends prepared responses, like a healthy or a failing API server."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cpmbee_job.launch.kube.protocol import Object


@dataclass(frozen=True)
class Answer:
    """`body`: JSON, or bytes; a list is sent in chunks. `cut`: close the connection before the end of the body.
    `hang`: send nothing until the client times out."""

    status: int = 200
    body: Any = field(default_factory=dict)
    cut: bool = False
    hang: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def status(code: int, message: str = "", **more: Any) -> Answer:
    return Answer(code, {"kind": "Status", "message": message, "code": code, **more})


class ApiServer:
    """`answers`: the next responses; the last one is repeated. `requests`: those received."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, str], Any]] = []
        self.address = ""
        self.over = threading.Event()

    @property
    def queries(self) -> list[dict[str, str]]:
        return [query for _, query, _, _ in self.requests]

    def tokens(self) -> list[str | None]:
        return [headers.get("authorization") for _, _, headers, _ in self.requests]

    def kubeconfig(self, folder: Path, user: dict[str, Any] | None = None) -> str:
        path = folder / "kubeconfig"
        document = {
            "clusters": [{"name": "c", "cluster": {"server": self.address}}],
            "users": [{"name": "u", "user": {"token": "old"} if user is None else user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(document))
        return str(path)


@contextmanager
def api_server(certificate: Path | None = None) -> Iterator[ApiServer]:
    """`certificate`: a file with key and certificate, to enable TLS."""
    script = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _play(self) -> None:
            url = urlsplit(self.path)
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {key.lower(): value for key, value in self.headers.items()}
            script.requests.append((url.path, dict(parse_qsl(url.query)), headers, json.loads(sent or "null")))
            answer = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            if answer.hang:
                script.over.wait()
                self.close_connection = True
                return
            chunks = answer.body if isinstance(answer.body, list) else None
            body = (
                b"" if chunks else answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            )
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header(*("Transfer-Encoding", "chunked") if chunks else ("Content-Length", str(len(body))))
            self.end_headers()
            if chunks:
                for chunk in chunks:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.write(b"" if answer.cut else b"0\r\n\r\n")
            else:
                self.wfile.write(body[: len(body) // 2] if answer.cut else body)
            self.close_connection = answer.cut

        do_GET = do_POST = do_DELETE = _play  # noqa: N815 (their names)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.address = f"http://127.0.0.1:{server.server_port}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        script.address = script.address.replace("http:", "https:")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()


def pod(name: str, version: int = 1) -> Object:
    """A pod with the fields that lists and watches read."""
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}}
