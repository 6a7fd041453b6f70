"""Checkpoints in the store: a state, then a manifest with its hash, then the pointer `LATEST`. Writer and reader.

The state contains everything but the base model: trained parameters and optimizer moments in fp32, the loss scale, and
the `LoopState`. It contains no random state: dropout is seeded by (seed, step, rank).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import CheckpointPointer, move_pointer, require_newest
from cpmbee_job.run.checkpoints import FORMAT_VERSION, StoredCheckpoint, read_state, resumable_checkpoints
from cpmbee_job.store.base import Store
from cpmbee_job.train.engine.interface import EngineState


def write_checkpoint(store: Store, step: int, attempt: int, state: EngineState, progress: Mapping[str, Any]) -> None:
    """Write the state and its manifest, and move `LATEST`. Raises `RefusedError` if a newer attempt has been claimed.

    `progress`: the record of a `LoopState`.
    """
    require_newest(store, attempt)
    header = {"version": FORMAT_VERSION, "step": step, "attempt": attempt, "engine": state.values, "progress": progress}
    # safetensors stores metadata only as strings
    data = safetensors.torch.save(dict(state.tensors), metadata={"cpmbee": json.dumps(header, sort_keys=True)})
    key = keys.state_key(step, attempt)
    store.put(key, data)
    manifest = {
        "version": FORMAT_VERSION,
        "step": step,
        "attempt": attempt,
        "key": key,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    store.put(keys.manifest_key(step, attempt), documents.to_json(manifest))
    move_pointer(store, keys.LATEST, {"step": step, "attempt": attempt}, attempt)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read."""

    stored: StoredCheckpoint
    engine: EngineState
    progress: dict[str, Any]
    """The record of a `LoopState`."""

    @property
    def pointer(self) -> CheckpointPointer:
        return CheckpointPointer(step=self.stored.step, attempt=self.stored.attempt)


def read_checkpoint(store: Store, stored: StoredCheckpoint) -> Checkpoint:
    """Read a checkpoint.

    Raises `DamagedError` if it differs from its manifest, `NotFoundError` if an object is missing, `StoreError`."""
    data = read_state(store, stored)
    header_length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + header_length])["__metadata__"]["cpmbee"])
    state = EngineState(safetensors.torch.load(data), header["engine"])
    return Checkpoint(stored, state, header["progress"])


def newest_checkpoint(store: Store, warn: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest intact checkpoint; None if there is none. Skips corrupt ones with a warning.

    Raises `StoreError` if the store fails: an outage must not make a run lose steps.
    """
    for stored in resumable_checkpoints(store):
        try:
            return read_checkpoint(store, stored)
        except (DamagedError, NotFoundError, KeyError, TypeError, ValueError) as error:
            warn(f"skipping the corrupt checkpoint of step {stored.step}, using the one before: {error}")
    return None
