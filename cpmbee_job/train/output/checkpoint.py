"""Checkpoints and deltas in the store: an object, then a manifest with its hash, then a pointer.

Writer and reader stand side by side. A state holds everything but the base: trained parameters and moments in fp32,
loss scale, position, best score, patience. No random state: what is random is a function of (seed, step, rank).
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
from cpmbee_job.run.attempts import require_newest
from cpmbee_job.run.checkpoints import FORMAT_VERSION, StoredCheckpoint, read_state
from cpmbee_job.run.pointers import CheckpointPointer, move_pointer
from cpmbee_job.run.resumable import resumable_checkpoints
from cpmbee_job.store.base import Store
from cpmbee_job.train.engine.interface import EngineState


def write_checkpoint(store: Store, step: int, attempt: int, state: EngineState, progress: Mapping[str, Any]) -> None:
    """Write the state of `step`, its manifest, and move LATEST. Raises `RefusedError` when a newer attempt is there."""
    require_newest(store, attempt)
    header = {"version": FORMAT_VERSION, "step": step, "attempt": attempt, "engine": state.values, "progress": progress}
    # safetensors keeps text only beside the tensors
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
    """What a checkpoint holds: the engine's state, and the loop's `Position` as a record."""

    step: int
    attempt: int
    engine: EngineState
    progress: dict[str, Any]
    modified: float | None = None
    """When its manifest was written, in seconds since 1970 by the store's clock."""

    @property
    def pointer(self) -> CheckpointPointer:
        return CheckpointPointer(step=self.step, attempt=self.attempt)


def read_checkpoint(store: Store, manifest: StoredCheckpoint) -> Checkpoint:
    """The checkpoint behind a manifest. Raises `DamagedError` when anything about it is not as the
    manifest says, `NotFoundError` when a part is missing, `StoreError` when the store fails."""
    data = read_state(store, manifest)
    header_length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + header_length])["__metadata__"]["cpmbee"])
    state = EngineState(safetensors.torch.load(data), header["engine"])
    return Checkpoint(manifest.step, manifest.attempt, state, header["progress"], manifest.modified)


def newest_checkpoint(store: Store, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose hashes hold, or None where there is none. Those that don't hold are passed over, and
    said; a store that fails is no reason to pass over one."""
    for found in resumable_checkpoints(store):
        try:
            return read_checkpoint(store, found)
        except (DamagedError, NotFoundError, KeyError, TypeError, ValueError) as error:
            warn(f"the checkpoint of step {found.step} can't be used, going back to the one before: {error}")
    return None
