"""The watchdog ends a process that makes no progress, but not one that waits for an active peer."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from cpmbee_job.errors import ExitCode

PREAMBLE = """
    import threading, time
    from cpmbee_job.process import activity
    from cpmbee_job.train.watchdog import Watchdog
    def stalled():
        print("stalled", flush=True)
    def for_two_seconds(action):
        for _ in range(20):
            time.sleep(0.1)
            action()
        print("done", flush=True)
"""


def lines_of(program: str) -> list[str]:
    """Return the lines that the program prints until its watchdog ends it."""
    whole = textwrap.dedent(PREAMBLE) + textwrap.dedent(program) + "time.sleep(60)\n"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == ExitCode.STALLED, done.stderr
    assert "no progress for 1 s; stacks of all threads" in done.stderr
    return done.stdout.split("\n")[:-1]


def test_a_process_without_activity_is_ended() -> None:
    assert lines_of("Watchdog(0.8, stalled)\n") == ["stalled"]


def test_activity_in_any_thread_keeps_the_process_alive() -> None:
    program = """
        Watchdog(0.8, stalled)
        threading.Thread(target=for_two_seconds, args=(activity.record,), daemon=True).start()
    """
    assert lines_of(program) == ["done", "stalled"]


def test_activity_of_an_ignored_thread_does_not_count() -> None:
    program = """
        Watchdog(0.8, stalled)
        def beat():
            activity.ignore_this_thread()
            for_two_seconds(activity.record)
        threading.Thread(target=beat, daemon=True).start()
    """
    assert lines_of(program) == ["stalled"]


def test_activity_of_peers_keeps_the_process_alive() -> None:
    program = """
        peers = [0]
        def peer_activity():
            peers[0] += 1
        Watchdog(0.8, stalled, lambda: lambda moved: peers[0])
        for_two_seconds(peer_activity)
    """
    assert lines_of(program) == ["done", "stalled"]


def test_only_local_activity_counts_if_the_shared_counter_hangs() -> None:
    program = """
        Watchdog(0.8, stalled, lambda: lambda moved: time.sleep(60))
        for_two_seconds(activity.record)
    """
    assert lines_of(program) == ["done", "stalled"]


def test_only_activity_is_reported_to_peers() -> None:
    program = """
        told = []
        Watchdog(0.8, lambda: print(any(told[:8]), any(told[-3:])), lambda: lambda moved: told.append(moved) or 0)
        for_two_seconds(activity.record)
    """
    assert lines_of(program) == ["done", "True False"]


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(RANK), other]
    ranks = [subprocess.Popen(command, env={**os.environ, **world, "RANK": rank}) for rank in ("0", "1")]
    try:
        assert ranks[1].wait(60) == status
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
