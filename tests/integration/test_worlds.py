"""Kill, stop and resize worlds at random moments from a seed, and check the invariants of their run."""

import json
import logging
import os
import random
import secrets
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.checkpoints import stored_checkpoints
from cpmbee_job.run.rows import StepRows, count_rows, read_rows
from cpmbee_job.run.run import Run
from tests.integration.jobs import delta, losses, make_job, metrics, numbers
from tests.integration.worlds import (
    Fault,
    RankServer,
    freeze,
    new_run,
    state,
    wait_for_object,
    wait_until_state,
)

NUM_ROWS, STEPS_PER_EPOCH, STEPS = 45, 6, 12
OPTIONS = ("train.deterministic=true", "train.epochs=2", "train.early_stop_patience=0")
log = logging.getLogger(__name__)
SEED = os.environ.get("CPMBEE_SEED") or secrets.token_hex(4)
"""Set CPMBEE_SEED to the seed that a failed test prints to draw the same faults again."""
MOST_FAULTS = 5


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def undisturbed(job: Path, server: RankServer) -> Path:
    run = new_run(job, "undisturbed", *OPTIONS)
    assert server.start(run, 1).wait() == [0]
    return Path(run.url)


def rows_of(run: Run) -> list[StepRows]:
    """The record behind the newest checkpoint."""
    newest = stored_checkpoints(run.store)[0]
    return read_rows(run.store, newest.step, newest.attempt)


def assert_each_row_once_an_epoch(run: Run) -> None:
    record = rows_of(run)
    assert [step.step for step in record] == list(range(1, STEPS + 1))
    for epoch in (1, 2):
        seen = Counter(row for step in record if step.epoch == epoch for row in step.rows)
        assert seen == Counter(range(NUM_ROWS))
    count = count_rows(record, run.data()["train"], STEPS_PER_EPOCH, drop_last=False)
    assert (count.rows, count.twice, count.never) == (2 * NUM_ROWS, [], [])


def end(server: RankServer, run: Run) -> None:
    """Let the run come to its end, undisturbed from now on."""
    assert set(server.start(run, 2).wait()) == {0}
    assert run.result()["state"] == "succeeded"


@pytest.mark.parametrize("number", range(8))
def test_nothing_is_lost_for_any_world_sizes_and_any_faults(job, server, undisturbed, number):
    log.warning("CPMBEE_SEED=%s", SEED)  # pytest shows it when the test fails
    draw = random.Random(f"{SEED}-{number}")
    run = new_run(job, f"drawn-{number}", *OPTIONS)
    story = []
    for _ in range(draw.randint(2, MOST_FAULTS)):
        size = draw.randint(1, 4)
        rank = draw.randrange(size)
        at = "write" if rank == 0 and draw.random() < 0.6 else "step"
        place = draw.randint(1, 30 if at == "write" else STEPS)
        fault = Fault(
            rank, at, place, draw.choice(["before", "after"]), draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
        )
        world = server.start(run, size, fault)
        story.append((size, fault, world.wait()))
        if run.result() is not None:
            break
    if run.result() is None:
        story.append((2, None, server.start(run, 2).wait()))
    assert run.result()["state"] == "succeeded", (SEED, number, story)
    assert numbers(Path(run.url)) == numbers(undisturbed), (SEED, number, story)
    assert delta(Path(run.url), "BEST") == delta(undisturbed, "BEST"), (SEED, number, story)
    assert delta(Path(run.url), "LAST") == delta(undisturbed, "LAST"), (SEED, number, story)
    assert_each_row_once_an_epoch(run)


@pytest.mark.parametrize("rank", range(3))
def test_sigterm_to_any_rank_stops_all_ranks_after_that_step_and_loses_no_step(job, server, undisturbed, rank):
    run = new_run(job, f"stop-{rank}", *OPTIONS, "train.checkpoint_interval=1000")
    assert server.start(run, 3, Fault(rank, "step", 4, "before", signal.SIGTERM)).wait() == [0, 0, 0]
    assert json.loads(run.store.get(keys.LATEST)) == {"step": 4, "attempt": 1}
    assert len(losses(Path(run.url))) == 4
    end(server, run)
    assert [line["attempt"] for line in metrics(Path(run.url))] == [1] * 4 + [2] * (STEPS - 4)
    assert numbers(Path(run.url)) == numbers(undisturbed)
    assert_each_row_once_an_epoch(run)


def test_all_worlds_of_an_epoch_leave_one_record(job, server):
    """Without `deterministic`, and with a checkpoint at every stop: one world of each size, each for some steps."""
    run = new_run(job, "sizes", "train.epochs=2", "train.checkpoint_interval=1000", "train.early_stop_patience=0")
    for size, last in ((1, 2), (2, 4), (3, 7), (4, 8)):
        assert set(server.start(run, size, Fault(0, "step", last, "before", signal.SIGTERM)).wait()) == {0}
    end(server, run)
    assert {line["attempt"] for line in metrics(Path(run.url))} == {1, 2, 3, 4, 5}
    assert_each_row_once_an_epoch(run)


def test_repeated_failures_at_the_same_step_fail_the_run_with_the_reason(job, server):
    run = new_run(job, "poisoned", *OPTIONS, "train.checkpoint_interval=1")
    for attempt in (1, 2, 3):
        assert run.result() is None
        assert set(server.start(run, 2, Fault(1, "step", 4, "before", 0)).wait()) == {1}
        assert json.loads(run.store.get(keys.attempt_key(attempt, ".failure")))["step"] == 3
    result = run.result()
    assert (result["state"], result["attempts"]) == ("failed", 3)
    assert result["reason"].startswith("failed 3 times at the same step: RuntimeError: CUDA out of memory")


def test_a_stale_world_that_wakes_up_changes_nothing(job, server, undisturbed):
    """The whole world freezes, as on a hung node. Another takes over; then the first one wakes up during its work."""
    run = new_run(job, "zombie", *OPTIONS)
    zombie = server.start(run, 2)
    wait_for_object(run, keys.manifest_key(4, 1))
    freeze(zombie, run)
    end(server, run)
    before = {entry.key: entry.etag for entry in run.store.list()}
    zombie.send(signal.SIGCONT)
    assert 0 not in zombie.wait()
    after = {entry.key: entry.etag for entry in run.store.list()}
    assert {key for key in after if after[key] != before.get(key)} <= {keys.log_key(contract.pod_name(), 1)}
    assert before.keys() <= after.keys()
    assert numbers(Path(run.url)) == numbers(undisturbed)


def test_a_stale_world_that_wakes_up_before_an_evaluation_writes_no_delta(job, server, undisturbed):
    run = new_run(job, "zombie-delta", *OPTIONS)
    zombie = server.start(run, 1, Fault(0, "step", 8, "before", signal.SIGSTOP))
    wait_until_state(zombie.pids[0], "T")
    end(server, run)
    zombie.send(signal.SIGCONT)
    assert 0 not in zombie.wait()
    assert not [entry.key for entry in run.store.list("delta/") if entry.key.startswith(keys.delta_prefix(8, 1))]
    assert numbers(Path(run.url)) == numbers(undisturbed)


def test_a_checkpoint_written_after_the_next_attempt_began_is_not_resumed_from(job, server, undisturbed):
    """The last write of a world that was thought to be dead: the metrics, and what is lost, are the later one's."""
    run = new_run(job, "late", *OPTIONS, "train.checkpoint_interval=4")
    late = keys.manifest_key(8, 1)
    assert server.start(run, 1, Fault(0, "step", 8, "before", signal.SIGTERM)).wait() == [0]
    manifest = run.store.get(late)
    run.store.delete(late)
    assert server.start(run, 1, Fault(0, "step", 6, "before", 0)).wait() == [1]
    run.store.put(late, manifest)
    end(server, run)
    assert numbers(Path(run.url)) == numbers(undisturbed)
    assert_each_row_once_an_epoch(run)


def test_two_concurrent_worlds_are_distinguished(job, server, undisturbed):
    """The older one writes on while the newer one begins: it is refused, and the newer one ends well."""
    run = new_run(job, "two", *OPTIONS, "train.checkpoint_interval=1")
    older = server.start(run, 1, Fault(0, "step", 3, "after", signal.SIGSTOP))
    wait_until_state(older.pids[0], "T")
    freeze(older, run)
    newer = server.start(run, 2)
    wait_for_object(run, keys.attempt_key(2))
    older.send(signal.SIGCONT)
    assert 0 not in older.wait()
    assert newer.wait() == [0, 0]
    assert run.result()["attempts"] == 2
    assert numbers(Path(run.url)) == numbers(undisturbed)
    assert_each_row_once_an_epoch(run)


def test_the_result_comes_last_from_one_rank_while_the_others_wait(job, server):
    run = new_run(job, "last-word", "train.max_steps=2", "data.eval=null")
    writes = server.log.with_name(f"{server.log.name}.writes")
    writes.unlink(missing_ok=True)
    world = server.start(run, 3, Fault(0, "step", 2, "after", signal.SIGSTOP))
    wait_until_state(world.pids[0], "T")
    time.sleep(1)  # time enough for the others to end, which they must not
    assert "Z" not in [state(pid) for pid in world.pids[1:]]
    assert run.result() is None
    world.send(signal.SIGCONT, 0)
    assert world.wait() == [0, 0, 0]
    lines = [line.split(maxsplit=1) for line in writes.read_text().splitlines()]
    assert {rank for rank, _ in lines} == {"0"}
    assert [key for _, key in lines].count(keys.RESULT) == 1
    assert lines[-1][1] == keys.RESULT
    assert {keys.METRICS, keys.STATUS, keys.LATEST, keys.LAST} <= {key for _, key in lines}
