"""How a worker lives among others: numbered attempts, agreed stops, failures that are told apart.

A worker that fails leaves a `Failure` in a file of its container; `cpmbee_job.train` (the entrypoint) reads it
after torchrun has ended and decides: start torchrun again, or end.
"""

import json
import os
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter

from cpmbee_job import contract
from cpmbee_job.errors import ConflictError, NotFoundError
from cpmbee_job.run import Run, now
from cpmbee_job.store.base import Store

FAILURE_ENV = "CPMBEE_FAILURE_FILE"
LOST_PEER = "lost contact with another rank"
PEER_STOPPED = "a pod was asked to stop; training goes on without it, or with another in its place"
STALLED = 75
"""Exit status of a worker that its watchdog ended, and the code of its failure."""


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


def claim_attempt(store: Store, world_size: int) -> int:
    """Take the next attempt's number, by conditional put: no two worlds ever share one."""
    attempt = newest_attempt(store) + 1
    while True:
        record = {
            "attempt": attempt,
            "started_at": now(),
            "started_unix": time.time(),
            "pod": contract.pod_name(),
            "world_size": world_size,
        }
        try:
            store.put(contract.attempt_key(attempt), contract.to_json(record), if_none_match=True)
        except ConflictError:
            attempt += 1
        else:
            return attempt


def newest_attempt(store: Store) -> int:
    """The highest attempt that has been claimed, 0 before the first."""
    names = [found.key.split("/")[-1] for found in store.list("attempts/")]
    return max((int(name.split(".")[0]) for name in names if re.fullmatch(r"\d+\.json", name)), default=0)


def first_start(store: Store) -> float:
    """When the run's first attempt began (seconds since 1970, the store's writer's clock)."""
    key = contract.attempt_key(1)
    return contract.AttemptRecord.parse(store.get(key), f"{store.url}/{key}").started_unix


def deadline(run: Run) -> float | None:
    """When the run must have ended (seconds since 1970); None without a deadline, and before the first attempt."""
    limit = run.spec.train.deadline
    if limit is None:
        return None
    try:
        return first_start(run.store) + limit
    except NotFoundError:
        return None


def deadline_words(run: Run) -> str:
    return f"the deadline of {run.spec.train.deadline:.0f} s has passed"


def record_failure(run: Run, attempt: int, failure: Failure) -> bool:
    """Note that `attempt` failed. True when the last `train.max_failures` attempts all failed at the same step for the
    same reason, so that another one would too. A lost peer (`LOST_PEER`) is no such reason: machines come and go."""
    try:
        run.store.put(contract.failure_key(attempt), contract.to_json(asdict(failure)), if_none_match=True)
    except ConflictError:
        return False  # another rank has the word
    limit = run.spec.train.max_failures
    if attempt < limit or failure.reason == LOST_PEER:
        return False
    for earlier in range(attempt - limit + 1, attempt):
        if run.store.info(contract.failure_key(earlier)) is None:
            return False
        try:
            record = _FAILURE.validate_json(run.store.get(contract.failure_key(earlier)), strict=True)
        except ValueError:
            return False
        if (record.reason, record.step) != (failure.reason, failure.step):
            return False
    return True


class StopRequest:
    """SIGTERM (or Ctrl-C) as a wish that all ranks agree on at the next step boundary."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
