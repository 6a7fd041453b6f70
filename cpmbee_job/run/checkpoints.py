"""The checkpoints of a run as objects: list, verify, prune. Needs no torch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import attempts, read_begin
from cpmbee_job.store.base import Store, get_verified

FORMAT_VERSION = 1


class CheckpointManifest(documents.Document):
    version: int
    key: str
    size: documents.Number
    sha256: str


@dataclass(frozen=True, order=True)
class StoredCheckpoint:
    """A checkpoint that has a manifest. The checkpoint of a later attempt is newer, whatever its step: the metrics are
    those of the later attempt."""

    attempt: int
    step: int
    modified: float | None = field(default=None, compare=False)
    """When the manifest was written, in seconds since 1970 by the store's clock."""

    @property
    def key(self) -> str:
        return keys.manifest_key(self.step, self.attempt)

    @property
    def state_key(self) -> str:
        return keys.state_key(self.step, self.attempt)


def stored_checkpoints(store: Store) -> list[StoredCheckpoint]:
    """Return all checkpoints of a run, newest first."""
    found = []
    for entry in store.list("checkpoints/"):
        match = re.fullmatch(r"checkpoints/(\d+)/manifest\.(\d+)\.json", entry.key)
        if match is not None:
            found.append(StoredCheckpoint(attempt=int(match[2]), step=int(match[1]), modified=entry.modified))
    return sorted(found, reverse=True)


def resumable_checkpoints(store: Store) -> Iterator[StoredCheckpoint]:
    """Yield the checkpoints from which a run may continue, newest first. A checkpoint that an attempt passed over stays
    excluded, even if it is intact by now or was written late by a writer that was presumed dead: the metrics are those
    of the later attempt."""
    begun, begin_of = attempts(store, ".begin"), cache(partial(read_begin, store))
    for checkpoint in stored_checkpoints(store):
        later = filter(None, map(begin_of, (attempt for attempt in begun if attempt > checkpoint.attempt)))
        if all((checkpoint.attempt, checkpoint.step) <= (begin.attempt, begin.step) for begin in later):
            yield checkpoint


def read_state(store: Store, checkpoint: StoredCheckpoint) -> bytes:
    """Return the verified state of a checkpoint. Raises `DamagedError` if it differs from its manifest,
    `NotFoundError` if an object is missing, `StoreError` if the store fails."""
    manifest = read_manifest(store, checkpoint.key)
    if manifest.key != checkpoint.state_key:
        raise DamagedError(f"{store.url}/{checkpoint.key}: names the state of another checkpoint: {manifest.key!r}")
    return get_verified(store, manifest.key, manifest.size, manifest.sha256)


def read_manifest(store: Store, key: str) -> CheckpointManifest:
    """Read the manifest of a checkpoint. Raises `NotFoundError`, `DamagedError`."""
    manifest = CheckpointManifest.parse(store.get(key), f"{store.url}/{key}")
    if manifest.version != FORMAT_VERSION:
        raise DamagedError(f"{store.url}/{key}: format version must be {FORMAT_VERSION} (got {manifest.version})")
    return manifest


def superseded(checkpoints: Sequence[StoredCheckpoint], keep: int) -> list[StoredCheckpoint]:
    """Return the checkpoints (given newest first) that do not belong to the newest `keep` steps."""
    kept = list(dict.fromkeys(checkpoint.step for checkpoint in checkpoints))[:keep]
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in kept]


def prune_checkpoints(store: Store, keep: int, attempt: int) -> None:
    """Delete the checkpoints of this and older attempts, except those of the newest `keep` steps; manifests first."""
    for checkpoint in superseded(stored_checkpoints(store), keep):
        if checkpoint.attempt <= attempt:
            store.delete(checkpoint.key)
            store.delete(checkpoint.state_key)
