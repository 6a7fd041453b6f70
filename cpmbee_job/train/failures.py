"""Failures of workers, and the decision whether another attempt can help. Needs no torch.

A worker that fails leaves a `Failure` in a file of its container. The entrypoint (`cpmbee_job.train`) reads it after
torchrun has exited, and starts torchrun again or ends.
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
PEER_STOPPED = "a pod was asked to stop; training continues without it or with its replacement"


@dataclass(frozen=True)
class Failure:
    """Why a worker ended."""

    reason: str
    step: int
    """Last completed step, 0 before the first."""
    permanent: bool
    """Whether another attempt cannot help."""
    exit_code: int

    def write(self) -> None:
        """Leave the failure for the entrypoint. The first failure in a container counts, unless a later one is
        permanent."""
        place = os.environ.get(FAILURE_ENV)
        known = self.in_container()
        if place and (known is None or (self.permanent and not known.permanent)):
            draft = Path(f"{place}.{os.getpid()}")
            try:
                draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
                draft.replace(place)
            except OSError as error:  # for example a full disk; the failure may still be recorded in the store
                sys.stderr.write(f"cannot write the failure {self.reason!r} for the entrypoint: {error}\n")

    @classmethod
    def in_container(cls) -> "Failure | None":
        """Return the failure that a worker has left in this container, if any."""
        place = os.environ.get(FAILURE_ENV)
        return cls.read(Path(place)) if place else None

    @classmethod
    def read(cls, path: Path) -> "Failure | None":
        """Return the failure in a file, None if the file is missing or invalid."""
        try:
            return _FAILURE.validate_json(path.read_bytes(), strict=True)
        except (FileNotFoundError, ValueError):
            return None


_FAILURE = TypeAdapter(Failure)


def record_failure(run: Run, attempt: int, failure: Failure) -> bool:
    """Record in the store that `attempt` failed. Return whether the run must fail.

    It must if the last `train.max_failures` attempts failed at the same step for the same reason. `LOST_PEER` does not
    count: nodes come and go.
    """
    try:
        run.store.put(keys.attempt_key(attempt, ".failure"), documents.to_json(asdict(failure)), if_none_match=True)
    except ConflictError:
        return False  # another rank has recorded the attempt's failure
    limit = run.spec.train.max_failures
    if attempt < limit or failure.reason == LOST_PEER:
        return False
    for earlier in range(attempt - limit + 1, attempt):
        if run.store.info(keys.attempt_key(earlier, ".failure")) is None:
            return False
        try:
            known = _FAILURE.validate_json(run.store.get(keys.attempt_key(earlier, ".failure")), strict=True)
        except ValueError:
            return False
        if (known.reason, known.step) != (failure.reason, failure.step):
            return False
    return True
