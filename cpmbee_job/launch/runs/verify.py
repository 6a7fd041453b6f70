"""List a run's checkpoints, and verify that its checkpoints, deltas and rows are as they were written."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run.checkpoints import read_manifest, read_state, resumable_checkpoints, stored_checkpoints
from cpmbee_job.run.deltas import check_delta, delta_folders
from cpmbee_job.run.rows import RowCount, count_rows, read_rows
from cpmbee_job.run.run import Run
from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class CheckpointEntry:
    step: int
    attempt: int
    size: int | None
    """Bytes of the state, None if its manifest cannot be read."""
    modified: float | None
    """When the manifest was written, in seconds since 1970."""
    is_overtaken: bool
    """Whether a later attempt has resumed from an earlier checkpoint, so that no attempt resumes from this one."""
    problem: str | None

    @property
    def is_resumable(self) -> bool:
        return self.problem is None and not self.is_overtaken


@dataclass(frozen=True)
class Verification:
    """`problem` of a checkpoint, and the values of `deltas`, are None for what is as it was written."""

    url: str
    checkpoints: list[CheckpointEntry]
    deltas: dict[str, str | None]
    rows: RowCount | None
    rows_problem: str | None
    problems: list[str] = field(default_factory=list)

    def row_summary(self) -> str:
        """Describe in one line how often training has read the packed rows."""
        if self.rows is None:
            return f"packed rows: {self.rows_problem}"
        repeated = f"{len(self.rows.twice):,} twice in an epoch, {len(self.rows.never):,} never"
        return f"packed rows: {self.rows.rows:,} in {self.rows.steps:,} steps, {repeated}"


def list_checkpoints(store: Store) -> list[CheckpointEntry]:
    """Return all checkpoints that have a manifest, newest first. States are not read, only their sizes compared."""
    sizes = {entry.key: entry.size for entry in store.list("checkpoints/")}
    entries = []
    resumable = set(resumable_checkpoints(store))
    for found in stored_checkpoints(store):
        size, problem = None, None
        try:
            size, stored = read_manifest(store, found.key).size, sizes.get(found.state_key)
            if stored != size:
                problem = "its state is missing" if stored is None else f"its state has {stored} bytes, not {size}"
        except (DamagedError, NotFoundError) as error:
            problem = str(error)
        is_overtaken = found not in resumable
        entries.append(CheckpointEntry(found.step, found.attempt, size, found.modified, is_overtaken, problem))
    return entries


def verify_run(run: Run) -> Verification:
    """Read all checkpoints, deltas and row records of the run. Raises `StoreError` if the object store fails."""
    store = run.store
    checkpoints = [
        replace(entry, problem=_problem(partial(read_state, store, manifest)))
        for entry, manifest in zip(list_checkpoints(store), stored_checkpoints(store), strict=True)
    ]
    folders = delta_folders(entry.key for entry in store.list("delta/"))
    deltas = {folder.prefix: _problem(partial(check_delta, store, folder.prefix)) for folder in folders}
    rows, rows_problem = _count_rows(run, checkpoints)
    problems = [problem for problem in (*(entry.problem for entry in checkpoints), *deltas.values()) if problem]
    if rows is not None and (rows.twice or rows.never):
        problems.append("training has not read every packed row exactly once per epoch")
    return Verification(run.url, checkpoints, deltas, rows, rows_problem, problems)


def _count_rows(run: Run, checkpoints: list[CheckpointEntry]) -> tuple[RowCount | None, str | None]:
    """Count the packed rows up to the newest resumable checkpoint, or return why they cannot be counted."""
    newest = next((entry for entry in checkpoints if entry.is_resumable), None)
    if newest is None:
        return None, "no checkpoint has a record of them"
    try:
        data, train = run.data()["train"], run.spec.train
        steps_per_epoch = -(-int(data["rows"]) // run.spec.global_batch_size)
        record = read_rows(run.store, newest.step, newest.attempt)
        return count_rows(record, data, steps_per_epoch, train.drop_last), None
    except (DamagedError, NotFoundError) as error:
        return None, str(error)


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (DamagedError, NotFoundError) as error:
        return error.message
    return None
