"""The record of packed rows: the chain of checkpoints, and the check of an epoch."""

from pathlib import Path

import pytest

from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import CheckpointPointer
from cpmbee_job.run.rows import RowRecorder, StepRows, count_rows, read_rows
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def record(store: Store, attempt: int, first: int, last: int, after: int | None = None, after_attempt: int = 1) -> None:
    """Write the record of one rank for the steps `first` to `last`, each of two rows."""
    begun_at = None if after is None else CheckpointPointer(step=after, attempt=after_attempt)
    recorder = RowRecorder(lambda own: [own], begun_at)
    for step in range(first, last + 1):
        recorder.note(step, 1, [2 * step, 2 * step + 1])
    recorder.gather()
    recorder.write(store, last, attempt)


def test_rows_of_all_ranks_are_gathered(store: Store) -> None:
    other = [StepRows(1, 1, [7, 8]), StepRows(2, 1, [9])]
    recorder = RowRecorder(lambda own: [own, other], None)
    recorder.note(1, 1, [5])
    recorder.note(2, 1, [6])
    recorder.gather()
    recorder.write(store, 2, 1)
    assert read_rows(store, 2, 1) == [StepRows(1, 1, [5, 7, 8]), StepRows(2, 1, [6, 9])]


def test_repeated_steps_are_recorded_once(store: Store) -> None:
    record(store, 1, 1, 4)
    record(store, 1, 5, 8, after=4)  # the checkpoint of step 8 is damaged
    record(store, 2, 5, 6, after=4)
    assert [step.step for step in read_rows(store, 6, 2)] == [1, 2, 3, 4, 5, 6]


def test_checkpoint_includes_the_steps_of_a_dropped_one(store: Store) -> None:
    recorder = RowRecorder(lambda own: [own], None)
    for step in (1, 2):
        recorder.note(step, 1, [step])
        recorder.gather()  # the checkpoint of step 1 is dropped
    recorder.note(3, 1, [3])
    recorder.gather()
    recorder.write(store, 2, 1)
    recorder.write(store, 3, 1)
    assert [step.step for step in read_rows(store, 3, 1)] == [1, 2, 3]
    assert [step.step for step in read_rows(store, 2, 1)] == [1, 2]


def test_failed_write_is_repeated_with_the_same_steps(store: Store) -> None:
    recorder = RowRecorder(lambda own: [own], None)
    recorder.note(1, 1, [4])
    recorder.gather()
    nowhere = open_store("/proc/no-such-folder")
    with pytest.raises(Exception, match="/proc"):
        recorder.write(nowhere, 1, 1)
    recorder.write(store, 1, 1)
    assert read_rows(store, 1, 1) == [StepRows(1, 1, [4])]


def test_gap_in_the_record_is_an_error(store: Store) -> None:
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


def test_repeated_and_missing_rows_of_an_epoch_are_counted() -> None:
    steps = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [2, 4]), StepRows(3, 2, [0, 1, 2]), StepRows(4, 2, [3, 4])]
    count = count_rows(steps, split(5), steps_per_epoch=2, drop_last=False)
    assert (count.steps, count.rows, count.twice, count.never) == (4, 10, [2], [3])
    unfinished = count_rows(steps[:1], split(5), steps_per_epoch=2, drop_last=False)
    assert (unfinished.twice, unfinished.never) == ([], [])
    assert count_rows(steps[:1], split(5), steps_per_epoch=1, drop_last=True).never == []


def test_mixture_repeats_no_row_before_all_rows_of_its_set() -> None:
    fair = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [0, 1, 3])]
    assert count_rows(fair, split(2, 3, weight=1.0), 2, drop_last=False).twice == []
    unfair = [StepRows(1, 1, [0, 1, 2]), StepRows(2, 1, [0, 2, 2])]
    count = count_rows(unfair, split(2, 3, weight=1.0), 2, drop_last=False)
    assert (count.twice, count.never) == ([2], [3, 4])
