"""The record of rows: a chain from checkpoint to checkpoint, and what it says of an epoch."""

from pathlib import Path

import pytest

from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.pointers import CheckpointPointer
from cpmbee_job.run.rows import RowRecorder, StepRows, count_rows, read_rows
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def record(store: Store, attempt: int, first: int, last: int, after: int | None = None, after_attempt: int = 1) -> None:
    """As one rank leaves it that does the steps `first` to `last`, each of two rows."""
    begun_at = None if after is None else CheckpointPointer(step=after, attempt=after_attempt)
    recorder = RowRecorder(lambda own: [own], begun_at)
    for step in range(first, last + 1):
        recorder.note(step, 1, [2 * step, 2 * step + 1])
    recorder.gather()
    recorder.write(store, last, attempt)


def test_all_ranks_shares_of_a_step_are_put_together(store: Store) -> None:
    other = [StepRows(1, 1, [7, 8]), StepRows(2, 1, [9])]
    recorder = RowRecorder(lambda own: [own, other], None)
    recorder.note(1, 1, [5])
    recorder.note(2, 1, [6])
    recorder.gather()
    recorder.write(store, 2, 1)
    assert read_rows(store, 2, 1) == [StepRows(1, 1, [5, 7, 8]), StepRows(2, 1, [6, 9])]


def test_what_was_lost_and_done_again_is_in_it_once(store: Store) -> None:
    record(store, 1, 1, 4)
    record(store, 1, 5, 8, after=4)  # its checkpoint was damaged, say
    record(store, 2, 5, 6, after=4)
    assert [step.step for step in read_rows(store, 6, 2)] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_stands_for_one_before_has_its_steps(store: Store) -> None:
    recorder = RowRecorder(lambda own: [own], None)
    for step in (1, 2):
        recorder.note(step, 1, [step])
        recorder.gather()  # the first one's turn to be written never came
    recorder.note(3, 1, [3])
    recorder.gather()
    recorder.write(store, 2, 1)
    recorder.write(store, 3, 1)
    assert [step.step for step in read_rows(store, 3, 1)] == [1, 2, 3]
    assert [step.step for step in read_rows(store, 2, 1)] == [1, 2]


def test_a_write_that_failed_is_done_again_with_the_same_steps(store: Store) -> None:
    recorder = RowRecorder(lambda own: [own], None)
    recorder.note(1, 1, [4])
    recorder.gather()
    nowhere = open_store("/proc/no-such-folder")
    with pytest.raises(Exception, match="/proc"):
        recorder.write(nowhere, 1, 1)
    recorder.write(store, 1, 1)
    assert read_rows(store, 1, 1) == [StepRows(1, 1, [4])]


def test_a_gap_in_the_record_is_said(store: Store) -> None:
    record(store, 1, 1, 4)
    record(store, 2, 6, 8, after=4)
    with pytest.raises(DamagedError, match="must contain the steps 5 to 8"):
        read_rows(store, 8, 2)
    record(store, 3, 5, 6, after=4, after_attempt=9)
    with pytest.raises(NotFoundError, match=r"rows/4\.9\.jsonl"):
        read_rows(store, 6, 3)
    store.put(keys.rows_key(1, 1), b"{}\n")
    with pytest.raises(DamagedError, match="not a record of rows"):
        read_rows(store, 1, 1)


def split(*sizes: int, weight: float | None = None) -> dict[str, object]:
    return {"sets": [{"rows": size, "weight": weight} for size in sizes]}


def test_rows_that_come_twice_or_never_in_an_epoch_are_counted() -> None:
    steps = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [2, 4]), StepRows(3, 2, [0, 1, 2]), StepRows(4, 2, [3, 4])]
    count = count_rows(steps, split(5), steps_per_epoch=2, drop_last=False)
    assert (count.steps, count.rows, count.twice, count.never) == (4, 10, [2], [3])
    unfinished = count_rows(steps[:1], split(5), steps_per_epoch=2, drop_last=False)
    assert (unfinished.twice, unfinished.never) == ([], [])
    assert count_rows(steps[:1], split(5), steps_per_epoch=1, drop_last=True).never == []


def test_in_a_mixture_no_row_comes_again_before_all_of_its_set() -> None:
    fair = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [0, 1, 3])]
    assert count_rows(fair, split(2, 3, weight=1.0), 2, drop_last=False).twice == []
    unfair = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [0, 2, 2])]
    count = count_rows(unfair, split(2, 3, weight=1.0), 2, drop_last=False)
    assert (count.twice, count.never) == ([2], [3, 4])
