"""metrics.jsonl has one line per step and evaluation, and an older attempt stops writing."""

import json
import time
from pathlib import Path

import pytest
import torch

from cpmbee_job import documents
from cpmbee_job.errors import RefusedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt
from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec
from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output.journal import Journal
from cpmbee_job.train.world import World

STEP = StepResult(loss=1.0, grad_norm=1.0, loss_scale=1.0, tokens=10, target_tokens=2, stop=False)
WORLD = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = f"name: a\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {tmp_path}\n"
    return Run.start(parse_spec(text, source="job.yaml"), "r1")


def new_journal(run: Run, start_step: int = 0, flush_interval: float = 60.0) -> Journal:
    attempt = Attempt(run, WORLD, claim_attempt(run.store, 1))
    return Journal(attempt, start_step=start_step, total_steps=9, flush_interval=flush_interval)


def lines(run: Run) -> list[tuple[str, int, int]]:
    records = [json.loads(line) for line in run.store.get(keys.METRICS).decode().splitlines()]
    return [(record["event"], record["step"], record["attempt"]) for record in records]


def test_repeated_steps_replace_their_lines(run: Run) -> None:
    first = new_journal(run)
    for step in (1, 2, 3):
        first.step(step, 1, 0.1, STEP)
    first.evaluation(2, EvalResult(1.0, 2), is_best=True)
    first.close("interrupted")
    second = new_journal(run, start_step=2)
    second.evaluation(2, EvalResult(1.0, 2), is_best=True)  # the first attempt ended before its checkpoint
    second.step(3, 1, 0.1, STEP)
    second.close("succeeded")
    assert sorted(lines(run)) == [("eval", 2, 2), ("step", 1, 1), ("step", 2, 1), ("step", 3, 2)]


def test_an_older_attempt_is_refused_on_every_flush(run: Run) -> None:
    older = new_journal(run)
    older.step(1, 1, 0.1, STEP)
    older.flush()
    newer = new_journal(run, start_step=0)
    newer.step(1, 1, 0.1, STEP)
    newer.close("succeeded")
    for _ in range(2):
        with pytest.raises(RefusedError):
            older.flush()
    assert lines(run) == [("step", 1, 2)]


def test_corrupt_lines_are_dropped(run: Run) -> None:
    first = new_journal(run)
    first.step(1, 1, 0.1, STEP)
    first.close("interrupted")
    run.store.put(keys.METRICS, run.store.get(keys.METRICS) + b'\xff\n{"event": "st')
    second = new_journal(run, start_step=1)
    second.step(2, 1, 0.1, STEP)
    second.close("succeeded")
    assert lines(run) == [("step", 1, 1), ("step", 2, 2)]


def test_an_older_attempt_does_not_overwrite_a_newer_one(run: Run) -> None:
    older, newer = new_journal(run), new_journal(run)
    newer.step(1, 1, 0.1, STEP)
    newer.flush()
    older.step(1, 1, 0.1, STEP)
    with pytest.raises(RefusedError, match="newer attempt"):
        older.flush()
    assert lines(run) == [("step", 1, 2)]
    newer.close("succeeded")


def test_an_older_attempt_is_refused_at_its_next_step(run: Run) -> None:
    older = new_journal(run, flush_interval=0.05)
    claim_attempt(run.store, 1)
    with pytest.raises(RefusedError, match="newer attempt"):  # noqa: PT012 (until the flushing thread is refused)
        for step in range(1, 10_000):
            older.step(step, 1, 0.1, STEP)
            time.sleep(0.01)
    older.abandon()
    assert not [found for found in run.store.list() if found.key.startswith("tensorboard/")]


def test_the_status_has_the_time_of_the_last_step(run: Run) -> None:
    running = new_journal(run)
    running.flush()
    assert json.loads(run.store.get(keys.STATUS))["stepped_at"] <= documents.now()
    time.sleep(1.1)  # timestamps have a resolution of 1 s
    running.flush()
    idle = json.loads(run.store.get(keys.STATUS))
    assert idle["stepped_at"] < idle["updated_at"]
    running.step(1, 1, 0.1, STEP)
    running.flush()
    assert json.loads(run.store.get(keys.STATUS))["stepped_at"] > idle["stepped_at"]
    running.close("succeeded")
