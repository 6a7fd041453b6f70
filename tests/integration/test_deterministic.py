"""`train.deterministic`: identical bytes for any number of processes and any faults."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.jobs import cli, delta, descendants, losses, make_job, metrics, numbers, start, wait_for

OPTIONS = ["--set", "train.deterministic=true", "--set", "train.epochs=4", "--set", "train.batch_size=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run on one process; another is killed on two processes within an epoch and resumes on three."""
    job = make_job(tmp_path_factory.mktemp("job"))
    folder = job.parent / "runs" / "weather"
    process = start(
        "local", job, *OPTIONS, "--run-id", "killed", "--processes", 2, "--set", "train.checkpoint_interval=4"
    )
    wait_for(folder / "killed" / "checkpoints" / "4" / "manifest.1.json")
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    # with another most of rows in a forward pass, which the spec may ask for
    for run_id, size in (("killed", 3), ("whole", 1)):
        done = cli("local", job, *OPTIONS, "--run-id", run_id, "--processes", size, "--set", "train.batch_size=5")
        assert done.code == 0, done.err
    return {name: folder / name for name in ("killed", "whole")}


def test_the_delta_has_the_same_bytes(runs: dict[str, Path]) -> None:
    killed, whole = runs["killed"], runs["whole"]
    assert {line["attempt"] for line in metrics(killed)} == {1, 2}
    assert len(losses(killed)) == 24
    assert numbers(killed) == numbers(whole)
    for pointer in ("BEST", "LAST"):
        assert delta(killed, pointer) == delta(whole, pointer)
