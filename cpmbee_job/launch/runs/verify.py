"""The checkpoints of a run as a user sees them: which there are, and whether they are as they were written."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run.checkpoints import read_manifest, read_state, stored_checkpoints
from cpmbee_job.run.deltas import check_delta, delta_folders
from cpmbee_job.run.resumable import resumable_checkpoints
from cpmbee_job.run.rows import RowCount, count_rows, read_rows
from cpmbee_job.run.run import Run
from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class CheckpointEntry:
    step: int
    attempt: int
    size: int | None
    """Bytes of the state, None where its manifest can't be read."""
    modified: float | None
    """When the manifest was written, in seconds since 1970."""
    is_overtaken: bool
    """Whether a later attempt has passed over it, so that no other goes on from it."""
    problem: str | None

    @property
    def can_be_gone_on_from(self) -> bool:
        return self.problem is None and not self.is_overtaken

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def list_checkpoints(store: Store) -> list[CheckpointEntry]:
    """All that have a manifest, newest first; looked for, not read."""
    sizes = {entry.key: entry.size for entry in store.list("checkpoints/")}
    entries = []
    going_on = set(resumable_checkpoints(store))
    for found in stored_checkpoints(store):
        size, problem = None, None
        try:
            size = read_manifest(store, found.key).size
            if sizes.get(found.state_key) != size:
                there = sizes.get(found.state_key)
                problem = "its state is missing" if there is None else f"its state has {there} bytes, not {size}"
        except (DamagedError, NotFoundError) as error:
            problem = str(error)
        entries.append(CheckpointEntry(found.step, found.attempt, size, found.modified, found not in going_on, problem))
    return entries


@dataclass(frozen=True)
class Verification:
    """`problem` and the values of `deltas` are None for what is as it was written."""

    url: str
    checkpoints: list[CheckpointEntry]
    deltas: dict[str, str | None]
    rows: RowCount | None
    rows_problem: str | None
    problems: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def row_words(self) -> str:
        if self.rows is None:
            return f"rows: {self.rows_problem}"
        words = f"rows: {self.rows.rows:,} in {self.rows.steps:,} steps"
        return f"{words}, {len(self.rows.twice):,} twice in an epoch, {len(self.rows.never):,} never"


def verify_run(run: Run) -> Verification:
    """Read everything. Raises `StoreError` where the store fails."""
    store = run.store
    checkpoints = [
        replace(entry, problem=_problem(partial(read_state, store, manifest)))
        for entry, manifest in zip(list_checkpoints(store), stored_checkpoints(store), strict=True)
    ]
    folders = delta_folders(entry.key for entry in store.list("delta/"))
    deltas = {folder.prefix: _problem(partial(check_delta, store, folder.prefix)) for folder in folders}
    rows, rows_problem = None, "no checkpoint has a record of them"
    newest = next((entry for entry in checkpoints if entry.can_be_gone_on_from), None)
    if newest is not None:
        try:
            data, train = run.data()["train"], run.spec.train
            steps_per_epoch = -(-int(data["rows"]) // run.spec.global_batch_size)
            record = read_rows(store, newest.step, newest.attempt)
            rows = count_rows(record, data, steps_per_epoch, train.drop_last)
        except (DamagedError, NotFoundError) as error:
            rows_problem = str(error)
    problems = [words for words in (*(entry.problem for entry in checkpoints), *deltas.values()) if words is not None]
    if rows is not None and (rows.twice or rows.never):
        problems.append("not every row once in an epoch")
    return Verification(run.url, checkpoints, deltas, rows, None if rows else rows_problem, problems)


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (DamagedError, NotFoundError) as error:
        return error.message
    return None
