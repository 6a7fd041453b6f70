"""The numbered attempts of a run: claimed by conditional put, so that no two worlds share one."""

import re
import time

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, NotFoundError
from cpmbee_job.process import contract
from cpmbee_job.run import keys, records
from cpmbee_job.run.run import Run, now
from cpmbee_job.store.base import Store


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
            store.put(keys.attempt_key(attempt), documents.to_json(record), if_none_match=True)
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
    key = keys.attempt_key(1)
    return records.AttemptRecord.parse(store.get(key), f"{store.url}/{key}").started_unix


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
