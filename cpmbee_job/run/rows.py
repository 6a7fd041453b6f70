"""The record of the packed rows that a run trained on: writer, reader and check. Before every checkpoint, rank 0 writes
an object with a JSON line for each step since the previous checkpoint, which its first line names. The record of a run
is the chain that ends at its newest checkpoint, whatever steps were lost and repeated."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import CheckpointPointer
from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class StepRows:
    """The ids of the packed rows of a step."""

    step: int
    epoch: int
    rows: list[int]


_LINE = TypeAdapter(StepRows)


class _Header(CheckpointPointer):
    after: CheckpointPointer | None


class RowRecorder:
    """Records the packed rows of this rank; on rank 0, writes those of all ranks."""

    def __init__(
        self, gather: Callable[[list[StepRows]], list[list[StepRows]]], after: CheckpointPointer | None
    ) -> None:
        """`gather` gathers a value of each rank on rank 0; `after` is the checkpoint from which training continues."""
        self._gather, self._after = gather, after
        self._own: list[StepRows] = []
        self._all: list[StepRows] = []

    def note(self, step: int, epoch: int, rows: list[int]) -> None:
        """Record that this rank trained on these rows."""
        self._own.append(StepRows(step, epoch, rows))

    def gather(self) -> None:
        """Gather the records of all ranks; a collective."""
        shares = self._gather(self._own)
        self._own = []
        self._all += [
            StepRows(ranks[0].step, ranks[0].epoch, [row for rank in ranks for row in rank.rows])
            for ranks in zip(*shares, strict=True)
        ]

    def write(self, store: Store, step: int, attempt: int) -> None:
        """Write the unwritten steps up to `step`. May run in another thread."""
        lines = [line for line in self._all if line.step <= step]
        header = _Header(step=step, attempt=attempt, after=self._after).model_dump()
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [header, *map(asdict, lines)])
        store.put(keys.rows_key(step, attempt), text.encode())
        del self._all[: len(lines)]
        self._after = CheckpointPointer(step=step, attempt=attempt)


def read_rows(store: Store, step: int, attempt: int) -> list[StepRows]:
    """Return the rows of every step up to that checkpoint. Raises `NotFoundError` if a part of the record is missing,
    `DamagedError` if it is corrupt or has a gap."""
    found: list[StepRows] = []
    checkpoint: CheckpointPointer | None = CheckpointPointer(step=step, attempt=attempt)
    while checkpoint is not None:
        key = keys.rows_key(checkpoint.step, checkpoint.attempt)
        header, *lines = store.get(key).split(b"\n")
        after = _Header.parse(header, f"{store.url}/{key}: not a record of rows").after
        try:
            steps = [_LINE.validate_json(line, strict=True) for line in lines if line]
        except ValueError as error:
            raise DamagedError(f"{store.url}/{key}: not a record of rows: {documents.problem(error)}") from error
        begin = 0 if after is None else after.step
        if after is not None and (after.step, after.attempt) >= (checkpoint.step, checkpoint.attempt):
            raise DamagedError(f"{store.url}/{key}: the previous checkpoint must be older")  # or the chain is endless
        if len(steps) != checkpoint.step - begin or any(line.step != n for n, line in enumerate(steps, begin + 1)):
            raise DamagedError(f"{store.url}/{key}: must contain the steps {begin + 1} to {checkpoint.step}")
        found[:0] = steps
        checkpoint = after
    return found


@dataclass(frozen=True)
class RowCount:
    """The number of steps and rows in a record, and the rows that occur too often or never."""

    steps: int
    rows: int
    twice: list[int]
    never: list[int]


def count_rows(steps: Sequence[StepRows], split: Mapping[str, Any], steps_per_epoch: int, drop_last: bool) -> RowCount:
    """Check a record against the training split of `data.json`. In an epoch, every row occurs once (with `drop_last`:
    at most once). In a mixture, no row is repeated before every row of its set has occurred."""
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
