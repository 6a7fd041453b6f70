"""The journal: one line for each step and evaluation, and an older attempt that falls silent."""

import json
import time
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import RefusedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store
from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output.exports import NO_EXPORTS
from cpmbee_job.train.output.progress import Journal

STEP = StepResult(loss=1.0, grad_norm=1.0, loss_scale=1.0, tokens=10, target_tokens=2, stop=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def journal(store: Store, start_step: int = 0, flush_interval: float = 60.0) -> Journal:
    attempt = claim_attempt(store, 1)
    names = {"attempt": attempt, "world_size": 1, "start_step": start_step, "total_steps": 9, "task_name": "task"}
    return Journal(store, **names, exports=NO_EXPORTS, flush_interval=flush_interval)  # type: ignore[arg-type]


def lines(store: Store) -> list[tuple[str, int, int]]:
    records = [json.loads(line) for line in store.get(keys.METRICS).decode().splitlines()]
    return [(record["event"], record["step"], record["attempt"]) for record in records]


def test_what_is_done_again_replaces_its_lines(store: Store) -> None:
    first = journal(store)
    for step in (1, 2, 3):
        first.step(step, 1, 0.1, STEP)
    first.evaluation(2, EvalResult(1.0, 2), best=True)
    first.close("interrupted")
    second = journal(store, start_step=2)
    second.evaluation(2, EvalResult(1.0, 2), best=True)  # the one before was stopped or killed before its checkpoint
    second.step(3, 1, 0.1, STEP)
    second.close("succeeded")
    assert sorted(lines(store)) == [("eval", 2, 2), ("step", 1, 1), ("step", 2, 1), ("step", 3, 2)]


def test_an_older_attempt_is_refused_every_time_it_tries(store: Store) -> None:
    older = journal(store)
    older.step(1, 1, 0.1, STEP)
    older.flush()
    newer = journal(store, start_step=0)
    newer.step(1, 1, 0.1, STEP)
    newer.close("succeeded")
    for _ in range(2):
        with pytest.raises(RefusedError):
            older.flush()
    assert lines(store) == [("step", 1, 2)]


def test_damaged_lines_end_no_run(store: Store) -> None:
    first = journal(store)
    first.step(1, 1, 0.1, STEP)
    first.close("interrupted")
    store.put(keys.METRICS, store.get(keys.METRICS) + b'\xff\n{"event": "st')
    second = journal(store, start_step=1)
    second.step(2, 1, 0.1, STEP)
    second.close("succeeded")
    assert lines(store) == [("step", 1, 1), ("step", 2, 2)]


def test_an_older_attempt_writes_nothing_over_a_newer_ones(store: Store) -> None:
    older, newer = journal(store), journal(store)
    newer.step(1, 1, 0.1, STEP)
    newer.flush()
    older.step(1, 1, 0.1, STEP)
    with pytest.raises(RefusedError, match="newer attempt"):
        older.flush()
    assert lines(store) == [("step", 1, 2)]
    newer.close("succeeded")


def test_an_older_attempt_ends_at_its_next_step(store: Store) -> None:
    older = journal(store, flush_interval=0.05)
    claim_attempt(store, 1)
    with pytest.raises(RefusedError, match="newer attempt"):  # noqa: PT012 (until its thread has noticed)
        for step in range(1, 10_000):
            older.step(step, 1, 0.1, STEP)
            time.sleep(0.01)
    older.drop()
    assert not [found for found in store.list() if found.key.startswith("tensorboard/")]


def test_the_status_says_when_the_last_step_was(store: Store) -> None:
    running = journal(store)
    running.flush()
    assert json.loads(store.get(keys.STATUS))["stepped_at"] <= documents.now()
    time.sleep(1.1)  # the records' clock has whole seconds
    running.flush()
    idle = json.loads(store.get(keys.STATUS))
    assert idle["stepped_at"] < idle["updated_at"]
    running.step(1, 1, 0.1, STEP)
    running.flush()
    assert json.loads(store.get(keys.STATUS))["stepped_at"] > idle["stepped_at"]
    running.close("succeeded")
