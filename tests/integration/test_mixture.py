"""Train on a mixture of datasets, with any world size and after a kill."""

import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpmbee_job.demo import reports
from tests.integration.jobs import cli, losses, make_job, metrics, start, wait_for

SETS = """\
data:
  train:
    - {path: train.jsonl, weight: 3, in_context: [1, 1, 1]}
    - {path: more.parquet, weight: 1}
  eval: eval.jsonl
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_job(tmp_path_factory.mktemp("mixture"), rows=200)
    pq.write_table(pa.Table.from_pylist(list(reports(90, seed=7))), path.with_name("more.parquet"))
    path.write_text(path.read_text().replace("data: {train: train.jsonl, eval: eval.jsonl}\n", SETS))
    return path


@pytest.fixture(scope="module")
def undisturbed(job: Path) -> Path:
    done = cli("local", job, "--run-id", "one", "--processes", 1)
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_the_counts_of_each_set_are_reported(undisturbed: Path, job: Path) -> None:
    record = json.loads((undisturbed / "data.json").read_text())["train"]
    first, second = record["sets"]
    assert (first["examples"], second["examples"], record["examples"]) == (200, 90, 290)
    assert first["tokens"] > 2 * 0.9 * second["tokens"] * 200 / 90, "one more example to look at, on average"
    said = cli("prepare", job).out
    assert "train.jsonl (weight 3): 200 examples" in said
    assert "more.parquet (weight 1): 90 examples" in said


def test_a_killed_run_resumes_within_an_epoch_on_two_processes(job: Path, undisturbed: Path) -> None:
    arguments = ["local", job, "--run-id", "killed"]
    run = undisturbed.parent / "killed"
    process = start(*arguments, "--processes", 1)
    wait_for(run / "checkpoints" / "LATEST")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = cli(*arguments, "--processes", 2)
    assert done.code == 0, done.err
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert [line["tokens"] for line in metrics(run)] == [line["tokens"] for line in metrics(undisturbed)]


def test_a_different_weight_makes_a_different_run(job: Path, undisturbed: Path) -> None:
    done = cli("local", job, "--run-id", "one", "--set", "data.train.1.weight=2")
    assert done.code == 5
    assert "data.train.1.weight: 1.0 -> 2.0" in done.err
