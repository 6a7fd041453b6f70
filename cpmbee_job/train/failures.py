"""How a worker lives among others: numbered attempts, agreed stops, failures that are told apart.

A worker that fails leaves a `Failure` in a file of its container; `cpmbee_job.train` (the entrypoint) reads it
after torchrun has ended and decides: start torchrun again, or end.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run

FAILURE_ENV = "CPMBEE_FAILURE_FILE"
LOST_PEER = "lost contact with another rank"
PEER_STOPPED = "a pod was asked to stop; training goes on without it, or with another in its place"


@dataclass(frozen=True)
class Failure:
    """Why a worker ended. `permanent`: starting again can't help. `step`: the one it was at, 0 before the first."""

    reason: str
    step: int
    permanent: bool
    exit_code: int

    def write(self) -> None:
        """Leave it for the entrypoint. The first of several workers has the word, unless a later one is permanent."""
        place = os.environ.get(FAILURE_ENV)
        known = self.here()
        if place and (known is None or (self.permanent and not known.permanent)):
            draft = Path(f"{place}.{os.getpid()}")
            try:
                draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
                draft.replace(place)
            except OSError as error:  # such as a full disk, on which this end may still be put on record elsewhere
                sys.stderr.write(f"{self.reason!r} could not be left for the entrypoint: {error}\n")

    @classmethod
    def here(cls) -> "Failure | None":
        """The one that was left in this container, if any."""
        place = os.environ.get(FAILURE_ENV)
        return cls.read(Path(place)) if place else None

    @classmethod
    def read(cls, place: Path) -> "Failure | None":
        try:
            return _FAILURE.validate_json(place.read_bytes(), strict=True)
        except (FileNotFoundError, ValueError):
            return None


_FAILURE = TypeAdapter(Failure)


def log_place(attempt: int) -> Path | None:
    """Where an attempt's log lies in this container until it is in the store; nowhere without an entrypoint."""
    place = os.environ.get(FAILURE_ENV)
    return None if place is None else Path(place).with_name(f"attempt-{attempt}.log")


def record_failure(run: Run, attempt: int, failure: Failure) -> bool:
    """Note that `attempt` failed. True when the last `train.max_failures` attempts all failed at the same step for the
    same reason, so that another one would too. A lost peer (`LOST_PEER`) is no such reason: machines come and go."""
    try:
        run.store.put(keys.failure_key(attempt), documents.to_json(asdict(failure)), if_none_match=True)
    except ConflictError:
        return False  # another rank has the word
    limit = run.spec.train.max_failures
    if attempt < limit or failure.reason == LOST_PEER:
        return False
    for earlier in range(attempt - limit + 1, attempt):
        if run.store.info(keys.failure_key(earlier)) is None:
            return False
        try:
            record = _FAILURE.validate_json(run.store.get(keys.failure_key(earlier)), strict=True)
        except ValueError:
            return False
        if (record.reason, record.step) != (failure.reason, failure.step):
            return False
    return True
