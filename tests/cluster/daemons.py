"""Start, find and stop daemons that outlive this process."""

import logging
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import STATE, ClusterError

PIDS = STATE / "pids"
LOGS = STATE / "logs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Daemon:
    name: str
    command: list[str]
    ready: Callable[[], bool]
    address: tuple[str, int] | None = None
    """Port on which only this daemon listens."""

    def up(self, *, seconds: float = 60) -> None:
        """Start the daemon and wait until it is ready."""
        if running(self.name):
            log.info("%s runs", self.name)
        else:
            self._start()
        wait_for(self.ready, seconds, f"{self.name} is not ready", alive=self.name)

    def _start(self) -> None:
        if self.address and _listens(*self.address):
            raise ClusterError(f"{self.name} needs port {self.address[1]}, which another program of this machine uses.")
        log.info("Starting %s", self.name)
        PIDS.mkdir(exist_ok=True)
        LOGS.mkdir(exist_ok=True)
        with (LOGS / f"{self.name}.log").open("ab") as output:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        (PIDS / self.name).write_text(f"{process.pid} {_born(process.pid)}")


def running(name: str) -> bool:
    return _pid(name) is not None


def kill(name: str) -> None:
    """End the daemon, if it runs, without ceremony: what it keeps is thrown away."""
    pid = _pid(name)
    if pid is None:
        return
    log.info("Stopping %s", name)
    os.kill(pid, signal.SIGKILL)
    while running(name):
        time.sleep(0.05)


def wait_for(ready: Callable[[], bool], seconds: float, otherwise: str, *, alive: str = "") -> None:
    """Wait until it is ready. If the daemon `alive` exits first, raise an error with the end of its log."""
    deadline = time.monotonic() + seconds
    while not ready():
        if alive and not running(alive):
            raise ClusterError(f"{alive} exited unexpectedly. {_last_words(alive)}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{otherwise} after {seconds:.0f} s. {_last_words(alive)}")
        time.sleep(0.1)


def answers(url: str, *, authority: Path | None = None) -> bool:
    """Whether 200 is the answer to GET; an https server without an authority is believed."""
    context = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=authority)
        if authority is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
    )
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _pid(name: str) -> int | None:
    try:
        pid, born = (PIDS / name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if _born(int(pid)) == born else None


def _born(pid: int) -> str:
    """When a process started, in ticks: with it a pid means one process only. Empty for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state == "Z" else fields[18]


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _last_words(name: str) -> str:
    if not name:
        return ""
    file = LOGS / f"{name}.log"
    return f"The end of {file}:\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:])
