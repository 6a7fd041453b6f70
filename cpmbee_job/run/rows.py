"""The record of which rows have been trained on, as the ranks that did so tell it.

Before every checkpoint goes an object with a line of JSON for each step since the checkpoint before, which its first
line names: the record of a run is the chain behind its newest checkpoint, whatever became of steps that were lost and
done again. Writer and reader stand side by side.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError
from cpmbee_job.run import keys, records
from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class StepRows:
    """The ids of the rows that a step was made of."""

    step: int
    epoch: int
    rows: list[int]


_LINE = TypeAdapter(StepRows)


class _Header(records.CheckpointPointer):
    after: records.CheckpointPointer | None


class RowRecorder:
    """Notes what this rank does, and on rank 0 writes what all have done."""

    def __init__(
        self, to_first: Callable[[list[StepRows]], list[list[StepRows]]], after: Mapping[str, int] | None
    ) -> None:
        """`to_first` brings a value of each rank to rank 0; `after` is the step and attempt of the checkpoint that
        training goes on from."""
        self._to_first = to_first
        self._after = after
        self._own: list[StepRows] = []
        self._all: list[StepRows] = []

    def note(self, step: int, epoch: int, rows: list[int]) -> None:
        """This rank has trained on these rows."""
        self._own.append(StepRows(step, epoch, rows))

    def gather(self) -> None:
        """Bring together what all ranks have noted; called by all."""
        shares = self._to_first(self._own)
        self._own = []
        self._all += [
            StepRows(parts[0].step, parts[0].epoch, [row for part in parts for row in part.rows])
            for parts in zip(*shares, strict=True)
        ]

    def write(self, store: Store, step: int, attempt: int) -> None:
        """Write the steps until `step` that have not been written yet. May be called in another thread."""
        lines = [line for line in self._all if line.step <= step]
        checkpoint = {"step": step, "attempt": attempt}
        records = [checkpoint | {"after": self._after}, *map(asdict, lines)]
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        store.put(keys.rows_key(step, attempt), text.encode())
        del self._all[: len(lines)]
        self._after = checkpoint


def read_rows(store: Store, step: int, attempt: int) -> list[StepRows]:
    """What the checkpoint of that step and attempt has been trained on, from the first step.

    Raises `NotFoundError` where a part of the record is not there, `DamagedError` where it is none, or has a gap.
    """
    found: list[StepRows] = []
    checkpoint: records.CheckpointPointer | None = records.CheckpointPointer(step=step, attempt=attempt)
    while checkpoint is not None:
        key = keys.rows_key(checkpoint.step, checkpoint.attempt)
        header, *lines = store.get(key).split(b"\n")
        after = _Header.parse(header, f"{store.url}/{key}: no record of rows").after
        try:
            steps = [_LINE.validate_json(line, strict=True) for line in lines if line]
        except ValueError as error:
            raise DamagedError(f"{store.url}/{key}: no record of rows: {documents.problem(error)}") from error
        begin = 0 if after is None else after.step
        if after is not None and (after.step, after.attempt) >= (checkpoint.step, checkpoint.attempt):
            raise DamagedError(f"{store.url}/{key}: names a checkpoint before it that is none")  # or it has no end
        if len(steps) != checkpoint.step - begin or any(line.step != n for n, line in enumerate(steps, begin + 1)):
            raise DamagedError(f"{store.url}/{key}: not the steps {begin + 1} to {checkpoint.step}")
        found[:0] = steps
        checkpoint = after
    return found


@dataclass(frozen=True)
class RowCount:
    """What a record says: how many steps and rows, and which rows came too often or not at all."""

    steps: int
    rows: int
    twice: list[int]
    never: list[int]


def count_rows(steps: Sequence[StepRows], split: Mapping[str, Any], steps_per_epoch: int, drop_last: bool) -> RowCount:
    """Hold a record against the training split of `data.json`: in an epoch no row comes twice, and at its end all have
    come (`drop_last`: but those of the step that is left out). In a mixture none comes again before all of its set."""
    sizes = [int(one["rows"]) for one in split["sets"]]
    twice: set[int] = set()
    never: set[int] = set()
    if split["sets"][0]["weight"] is None:
        for epoch in sorted({step.epoch for step in steps}):
            own = [step for step in steps if step.epoch == epoch]
            times = Counter(row for step in own for row in step.rows)
            twice |= {row for row, count in times.items() if count > 1}
            if len(own) == steps_per_epoch and not drop_last:
                never |= set(range(sum(sizes))) - set(times)
    else:
        times = Counter(row for step in steps for row in step.rows)
        start = 0
        for size in sizes:
            rows = range(start, start + size)
            fewest, most = min(times[row] for row in rows), max(times[row] for row in rows)
            if most - fewest > 1:
                twice |= {row for row in rows if times[row] == most}
                never |= {row for row in rows if times[row] == fewest}
            start += size
    return RowCount(len(steps), sum(len(step.rows) for step in steps), sorted(twice), sorted(never))
