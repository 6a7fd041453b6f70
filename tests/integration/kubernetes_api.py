"""A `FakeCluster` behind HTTP, for tests of the command line as a process of its own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cpmbee_job.errors import ConflictError, CpmbeeError, NotFoundError, RejectedError
from tests.fake_cluster import FakeCluster

STATUS = {NotFoundError: 404, ConflictError: 409, RejectedError: 422}


@contextmanager
def kubernetes_api(cluster: FakeCluster, folder: Path) -> Iterator[Path]:
    """Serves the cluster until the block ends; gives the kubeconfig."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            try:
                code, answer = 200, _ask(cluster, self.command, self.path, body)
            except CpmbeeError as error:
                code, answer = STATUS.get(type(error), 403), {"kind": "Status", "message": error.message}
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 (their names)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    path = folder / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": cluster.namespace}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()


def _ask(cluster: FakeCluster, method: str, path: str, body: Any) -> Any:
    url = urlsplit(path)
    query = dict(parse_qsl(url.query))
    if url.path == "/version":
        return {"gitVersion": cluster.server_version()}
    group, _, rest = url.path.strip("/").partition("/namespaces/")
    _, plural, *name = rest.split("/")
    kind = f"{group}/{plural}"
    if method == "POST":
        return cluster.create(kind, body, dry_run=query.get("dryRun") == "All")
    if method == "DELETE":
        cluster.delete(kind, name[0], body["preconditions"]["uid"])
        return {"kind": "Status", "status": "Success"}
    if name:
        return cluster.get(kind, name[0])
    labels = dict(term.split("=") for term in query.get("labelSelector", "").split(",") if term)
    return {"items": list(cluster.list(kind, labels)), "metadata": {"resourceVersion": "1"}}
