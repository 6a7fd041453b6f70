"""The watchdog ends a process that makes no progress, but not one that waits for an active peer."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from cpmbee_job.errors import ExitCode
from tests.ports import free_port

PREAMBLE = """
    import threading, time
    from cpmbee_job.process import activity
    from cpmbee_job.train.watchdog import Watchdog
    LIMIT = 3.0
    def stalled():
        print("stalled", flush=True)
    def for_six_seconds(action):
        for _ in range(60):
            time.sleep(0.1)
            action()
        print("done", flush=True)
"""
PROGRAMS = {
    "no activity": "Watchdog(LIMIT, stalled)",
    "activity in a thread": """
        Watchdog(LIMIT, stalled)
        threading.Thread(target=for_six_seconds, args=(activity.record,), daemon=True).start()
    """,
    "activity of an ignored thread": """
        Watchdog(LIMIT, stalled)
        def beat():
            activity.ignore_this_thread()
            for_six_seconds(activity.record)
        threading.Thread(target=beat, daemon=True).start()
    """,
    "activity of a peer": """
        peers = [0]
        def peer_activity():
            peers[0] += 1
        Watchdog(LIMIT, stalled, lambda: lambda moved: peers[0])
        for_six_seconds(peer_activity)
    """,
    "local activity, the shared counter hangs": """
        Watchdog(LIMIT, stalled, lambda: lambda moved: time.sleep(60))
        for_six_seconds(activity.record)
    """,
    "activity is reported to peers": """
        told = []
        Watchdog(LIMIT, lambda: print(any(told[:8]), any(told[-3:])), lambda: lambda moved: told.append(moved) or 0)
        for_six_seconds(activity.record)
    """,
}


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Start all programs at once: they spend their time waiting."""
    started = {}
    for name, program in PROGRAMS.items():
        whole = textwrap.dedent(PREAMBLE) + textwrap.dedent(program) + "\ntime.sleep(60)\n"
        command = [sys.executable, "-c", whole]
        started[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("no activity", ["stalled"]),
        ("activity in a thread", ["done", "stalled"]),
        ("activity of an ignored thread", ["stalled"]),
        ("activity of a peer", ["done", "stalled"]),
        ("local activity, the shared counter hangs", ["done", "stalled"]),
        ("activity is reported to peers", ["done", "True False"]),
    ],
)
def test_a_process_is_ended_once_it_has_no_activity(
    processes: dict[str, "subprocess.Popen[str]"], name: str, lines: list[str]
) -> None:
    out, err = processes[name].communicate(timeout=60)
    assert processes[name].returncode == ExitCode.STALLED, err
    assert "no progress for 3 s; stacks of all threads" in err
    assert out.splitlines() == lines


RANK = """
    import os, signal, sys, time
    import torch.distributed as dist
    from cpmbee_job.process import activity
    from cpmbee_job.train.watchdog import Watchdog
    from cpmbee_job.train.world import World
    world = World.init()
    Watchdog(4.0, lambda: None, world.shared_counter)
    if world.rank == 0:
        for number in range(80):
            time.sleep(0.1)
            activity.record()
            if number == 10 and sys.argv[1] == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()
    os._exit(0)
"""


@pytest.mark.parametrize(("other", "status"), [("moves", 0), ("stops", ExitCode.STALLED)])
def test_a_rank_waits_for_a_peer_while_the_peer_is_active(other: str, status: int) -> None:
    """The peer also hosts the store with the shared counter."""
    port = free_port()
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(RANK), other]
    ranks = [subprocess.Popen(command, env={**os.environ, **world, "RANK": rank}) for rank in ("0", "1")]
    try:
        assert ranks[1].wait(60) == status
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
