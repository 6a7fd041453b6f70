"""Worlds of real processes that a test starts, disturbs and restarts; see `rank_server`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpmbee_job.data.prepare.job_data import prepare_job
from cpmbee_job.run.run import Run
from cpmbee_job.spec import load_spec
from cpmbee_job.store.files import LOCK
from tests.ports import free_port

TIMEOUT = 60.0
"""Seconds after which a world that still runs is killed, as a watchdog would."""


@dataclass(frozen=True)
class Fault:
    """A signal that a rank sends itself; see `rank_server`."""

    rank: int
    at: str
    number: int
    when: str = "after"
    signal: int = signal.SIGKILL

    def order(self) -> dict[str, Any]:
        return {"at": self.at, "number": self.number, "when": self.when, "signal": int(self.signal)}


@dataclass
class World:
    """A running world: the process ids of its ranks, by rank."""

    pids: list[int]
    server: "RankServer"
    ended: dict[int, int] = field(default_factory=dict)

    def wait(self, *ranks: int) -> list[int]:
        """Wait for these ranks (default: all) and return their exit statuses."""
        watchdog = threading.Timer(TIMEOUT, self.send, [signal.SIGKILL])
        watchdog.start()
        for rank in ranks or range(len(self.pids)):
            if rank not in self.ended:
                self.ended[rank] = int(self.server.ask({"wait": self.pids[rank]}))
        watchdog.cancel()
        return [self.ended[rank] for rank in ranks or range(len(self.pids))]

    def send(self, number: int, *ranks: int) -> None:
        """Send a signal to those of these ranks (default: all) that still run."""
        for rank in set(ranks or range(len(self.pids))) - set(self.ended):
            with suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)


class RankServer:
    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self.log = log
        self.worlds: list[World] = []

    def ask(self, command: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def start(self, run: Run, size: int, *faults: Fault, sharded: bool = False) -> World:
        port = free_port()
        by_rank = {fault.rank: fault.order() for fault in faults}
        common = {"url": run.url, "world_size": size, "port": port, "log": str(self.log), "sharded": sharded}
        world = World([], self)
        self.worlds.append(world)
        for rank in range(size):
            world.pids.append(int(self.ask(common | {"rank": rank, "fault": by_rank.get(rank)})))
        return world


@contextmanager
def rank_server(log: Path) -> Iterator[RankServer]:
    command = [sys.executable, str(Path(__file__).with_name("rank_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        server = RankServer(process, log)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield server
        finally:
            for world in server.worlds:
                world.send(signal.SIGKILL)
            process.kill()


def new_run(job: Path, run_id: str, *overrides: str) -> Run:
    """Create a run of the job with prepared data."""
    run = Run.start(load_spec(job, overrides), run_id)
    run.bind_data(prepare_job(run.spec, run.storage))
    return run


def wait_for_object(run: Run, key: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while run.store.info(key) is None:
        assert time.monotonic() < deadline, f"{key} did not appear"
        time.sleep(0.01)


def state(pid: int) -> str:
    """Return the state of a process as `ps` shows it: T stopped, Z zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_state(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while state(pid) != wanted:
        assert time.monotonic() < deadline, f"process {pid} is {state(pid)}, not {wanted}"
        time.sleep(0.01)


def freeze(world: World, run: Run) -> None:
    """Stop all its processes while none holds a lock, since a remote store has no locks."""
    while True:
        world.send(signal.SIGSTOP)
        for pid in world.pids:
            wait_until_state(pid, "T")
        if not list(Path(run.url).rglob(f"*{LOCK}")):
            return
        world.send(signal.SIGCONT)
        time.sleep(0.02)
