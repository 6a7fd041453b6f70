"""Out-of-memory kills in a real control group."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpmbee_job.process.pod import CGROUPS

LIMIT = 128 << 20
PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from cpmbee_job.train.oom import OomWatch
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
steps = iter([0, 0, 7])
watch = OomWatch(lambda: next(steps))
for program in ("pass", *["bytearray(1 << 30)"] * 3):
    watch.begin()
    subprocess.run([sys.executable, "-c", program])
    watch.poll()
    print(watch.count, watch.reason)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """Yield a control group with a memory limit; requires the permission to create one."""
    root = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    folder = root / f"cpmbee-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("requires the permission to create control groups")
    try:
        limit = next((folder / n for n in ("memory.max", "memory.limit_in_bytes") if (folder / n).exists()), None)
        if limit is None or not os.access(limit, os.W_OK):
            pytest.skip("requires a memory controller for control groups")
        limit.write_text(str(LIMIT))
        yield folder
    finally:
        folder.rmdir()


def test_out_of_memory_kills_are_counted_until_there_is_a_newer_checkpoint(group):
    done = subprocess.run([sys.executable, "-c", PROGRAM, group], capture_output=True, text=True, check=True)
    words = "out of memory: a worker was killed by the kernel; the container's limit is 0.1 GiB (workers.memory)"
    assert done.stdout.splitlines() == ["0 None", f"1 {words}", f"2 {words}", f"1 {words}"]
