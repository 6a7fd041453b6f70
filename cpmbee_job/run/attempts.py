"""The numbered attempts of a run. Each is claimed by a conditional put, so that no two worlds share a number."""

import re
import time
from contextlib import suppress

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError, RefusedError
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.pointers import CheckpointPointer, read_checkpoint_pointer
from cpmbee_job.store.base import Store


class AttemptRecord(documents.Document):
    started_unix: float


def claim_attempt(store: Store, world_size: int) -> int:
    """Claim and return the next attempt number."""
    attempt = newest_attempt(store) + 1
    while True:
        record = {
            "attempt": attempt,
            "started_at": documents.now(),
            "started_unix": time.time(),
            "pod": contract.pod_name(),
            "world_size": world_size,
        }
        with suppress(ConflictError):
            store.put(keys.attempt_key(attempt), documents.to_json(record), if_none_match=True)
            return attempt
        attempt += 1


def newest_attempt(store: Store) -> int:
    """Return the highest claimed attempt, 0 before the first."""
    return max(_numbers(store, ""), default=0)


def require_newest(store: Store, attempt: int) -> None:
    """Raise `RefusedError` if a newer attempt has been claimed: it owns the run now."""
    newest = newest_attempt(store)
    if newest > attempt:
        raise RefusedError(f"{store.url}: a newer attempt ({newest}) has taken over")


def first_start(store: Store) -> float:
    """Return when the first attempt started (seconds since 1970, by the clock of its pod)."""
    key = keys.attempt_key(1)
    return AttemptRecord.parse(store.get(key), f"{store.url}/{key}").started_unix


def record_begin(store: Store, attempt: int, after: CheckpointPointer | None) -> None:
    """Record, before the attempt writes anything else, from which checkpoint it continues (None: from the start).
    `resumable_checkpoints` reads it."""
    begin = {"attempt": 0, "step": 0} if after is None else {"attempt": after.attempt, "step": after.step}
    store.put(keys.attempt_key(attempt, ".begin"), documents.to_json(begin))


def attempts_begun(store: Store) -> list[int]:
    """Return the attempts that recorded where they continue from."""
    return _numbers(store, ".begin")


def read_begin(store: Store, attempt: int) -> CheckpointPointer | None:
    """Return the checkpoint from which the attempt continued; None if the document is missing or corrupt."""
    with suppress(DamagedError, NotFoundError):
        return read_checkpoint_pointer(store, keys.attempt_key(attempt, ".begin"))
    return None


def _numbers(store: Store, kind: str) -> list[int]:
    names = (entry.key for entry in store.list("attempts/"))
    return [int(match[1]) for name in names if (match := re.fullmatch(rf"attempts/(\d+){kind}\.json", name))]
