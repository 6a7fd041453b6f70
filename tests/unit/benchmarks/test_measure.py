import os
import subprocess

import numpy as np
import pytest

from benchmarks.measure import Figure, in_fresh_process, one_core, own_memory, run_sampled

ALLOCATE = "import time; block = bytearray({size} << 20); time.sleep(0.5)"


def memory_after(megabytes: int) -> tuple[int, int]:
    block = np.ones(megabytes << 20, dtype=np.uint8)
    now, _ = own_memory()
    del block
    return now, own_memory()[1]


@pytest.mark.parametrize(
    ("ratio", "mark", "bound", "reached"),
    [
        (15, 15, "at least", True),
        (14.9, 15, "at least", False),
        (1.2, 1.2, "at most", True),
        (3, 1.2, "at most", False),
    ],
)
def test_a_target_is_reached(ratio, mark, bound, reached):
    assert Figure("", "", "", ratio, mark, bound).reached is reached


def test_a_figure_without_a_target():
    assert Figure("", "", "", 3.0).reached is None


def test_memory_covers_the_fresh_process_only():
    block = np.ones(300 << 20, dtype=np.uint8)
    now, most = in_fresh_process(memory_after, 200)
    for memory in (now, most):  # the kernel counts the most in strides: it may be a little less than what is there now
        assert 200 << 20 < memory < block.nbytes + (200 << 20)


def test_memory_of_children_counts():
    child = ALLOCATE.format(size=150)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    _, alone = run_sampled("-c", ALLOCATE.format(size=1))
    _, together = run_sampled("-c", parent)
    assert together - alone > 150 << 20


def test_a_failing_command_ends_the_benchmark():
    with pytest.raises(subprocess.CalledProcessError):
        run_sampled("-c", "raise SystemExit(3)")


def test_the_limit_to_one_core_ends():
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
