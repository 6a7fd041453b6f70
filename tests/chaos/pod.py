"""A pod as processes: its two containers, one after the other, and the kubelet that starts them again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cpmbee_job.process import contract, parent_watch
from tests.integration.jobs import descendants, workers
from tests.integration.worlds import state

PAUSE = 1.0
"""Seconds after which a container that has ended without a result is started again."""


class Pod:
    def __init__(self, url: str, processes: int, environment: Mapping[str, str], scratch: Path, log: Path) -> None:
        """`scratch` is the volume of its own, for the cache and temporary files."""
        self.url, self.processes, self.scratch = url, processes, scratch
        (scratch / "tmp").mkdir(parents=True)
        own = {"TMPDIR": str(scratch / "tmp"), "CPMBEE_CACHE": str(scratch / "cache")}
        self._environment = {**os.environ, **environment, **own, **parent_watch.parent_environment()}
        self._log = log
        self._ended_at = 0.0
        self._start(contract.prepare_command(url))

    def tend(self, has_result: Callable[[], bool]) -> bool:
        """What the kubelet does: start the next container, or the same one again. False when the pod has ended."""
        status = self.process.poll()
        if status is None:
            return True
        if self.is_preparing and status == 0:
            self._start([*contract.train_command(self.url), f"--processes={self.processes}"])
        elif not self.is_preparing and has_result():
            return False
        elif not self._ended_at:
            self._ended_at = time.monotonic()
        elif time.monotonic() > self._ended_at + PAUSE:
            self._start(self._command)
        return True

    @property
    def is_preparing(self) -> bool:
        return self._command == contract.prepare_command(self.url)

    def ranks(self) -> list[int]:
        """The process ids of the workers, by rank."""
        return sorted(workers(self.process.pid), key=_rank)

    def torchrun(self) -> int | None:
        below = set(descendants(self.process.pid)) - set(workers(self.process.pid))
        return next((pid for pid in below if b"torch.distributed.run" in _read(pid, "cmdline")), None)

    def send(self, number: int) -> None:
        """To every process, the entrypoint first, so that it starts none in between."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            send(pid, number)

    def freeze(self) -> list[int]:
        """Freeze all processes, as on a node that hangs. Return them."""
        while True:
            self.send(signal.SIGSTOP)
            frozen = [self.process.pid, *descendants(self.process.pid)]
            with suppress(FileNotFoundError, ProcessLookupError):  # one ended in between
                if all(state(pid) == "T" for pid in frozen):
                    return frozen
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill all processes at once, as when the node fails."""
        below = descendants(self.process.pid)
        for pid in (self.process.pid, *below):
            send(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, command: list[str]) -> None:
        self._command = command
        self._ended_at = 0.0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _rank(pid: int) -> int:
    for variable in _read(pid, "environ").split(b"\0"):
        if variable.startswith(b"RANK="):
            return int(variable[5:])
    return 0


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
