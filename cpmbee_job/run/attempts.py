"""The numbered attempts of a run, and the pointers that they move: `checkpoints/LATEST`, `delta/BEST`, `delta/LAST`.
Each attempt is claimed by a conditional put, so that no two worlds share a number."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError, RefusedError
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.store.base import Store


class AttemptRecord(documents.Document):
    started_unix: float


class CheckpointPointer(documents.Document):
    """`LATEST`, and references to a checkpoint in other documents; `BEST` and `LAST` have the same fields and more."""

    step: documents.Number
    attempt: documents.Number


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
    return max(attempts(store), default=0)


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


def read_begin(store: Store, attempt: int) -> CheckpointPointer | None:
    """Return the checkpoint from which the attempt continued; None if the document is missing or corrupt."""
    with suppress(DamagedError, NotFoundError):
        return read_checkpoint_pointer(store, keys.attempt_key(attempt, ".begin"))
    return None


def read_checkpoint_pointer(store: Store, key: str) -> CheckpointPointer:
    """Read `LATEST` or the begin document of an attempt. Raises `NotFoundError`, `DamagedError`."""
    return CheckpointPointer.parse(store.get(key), f"{store.url}/{key}")


def replace_pointer(store: Store, key: str, document: Mapping[str, Any], etag: str | None) -> None:
    """Write a pointer if its ETag is still `etag` (None: if it does not exist). Raises `ConflictError`."""
    store.put(key, documents.to_json(document), if_none_match=etag is None, if_match=etag)


def move_pointer(store: Store, key: str, target: Mapping[str, Any], attempt: int) -> None:
    """Point `key` to `target` in the name of `attempt`. Raises `RefusedError` if a newer attempt has moved it."""
    while True:
        etag: str | None = None
        with suppress(NotFoundError):
            old, etag = store.get_with_etag(key)
            with suppress(DamagedError):  # a corrupt pointer may be overwritten
                if (newest := CheckpointPointer.parse(old, "").attempt) > attempt:
                    raise RefusedError(f"{store.url}/{key}: a newer attempt ({newest}) has taken over")
        with suppress(ConflictError):
            replace_pointer(store, key, {**target, "attempt": attempt}, etag)
            return


def attempts(store: Store, kind: Literal["", ".begin"] = "") -> list[int]:
    """Return the attempts that are claimed; with `.begin`, those that recorded where they continue from."""
    names = (entry.key for entry in store.list("attempts/"))
    return [int(match[1]) for name in names if (match := re.fullmatch(rf"attempts/(\d+){kind}\.json", name))]
