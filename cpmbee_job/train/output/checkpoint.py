"""Checkpoints and deltas in the store: an object, then a manifest with its hash, then a pointer.

Writer and reader stand side by side. A state holds everything but the base: trained parameters and moments in fp32,
loss scale, position, best score, patience. No random state: what is random is a function of (seed, step, rank).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError, RefusedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import newest_attempt
from cpmbee_job.run.checkpoints import FORMAT_VERSION, Manifest, read_state, usable
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


def read_checkpoint(store: Store, manifest: Manifest) -> Checkpoint:
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
    for found in usable(store):
        try:
            return read_checkpoint(store, found)
        except (DamagedError, NotFoundError, KeyError, TypeError, ValueError) as error:
            warn(f"the checkpoint of step {found.step} can't be used, going back to the one before: {error}")
    return None


def record_begin(store: Store, attempt: int, found: Checkpoint | None) -> None:
    """Put on record, before anything else is written, that `attempt` goes on from there: see `usable`."""
    after = {"attempt": 0, "step": 0} if found is None else {"attempt": found.attempt, "step": found.step}
    store.put(keys.begin_key(attempt), documents.to_json(after))


def write_folder(store: Store, prefix: str, folder: Path) -> None:
    """Write the files of a delta folder; the manifest comes last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        store.upload(path, prefix + path.name)


def require_newest(store: Store, attempt: int) -> None:
    """Raise `RefusedError` when a newer attempt has begun: the run is in its hands."""
    newest = newest_attempt(store)
    if newest > attempt:
        raise RefusedError(f"{store.url}: a newer attempt ({newest}) has taken over")


def move_pointer(store: Store, key: str, record: Mapping[str, Any], attempt: int) -> None:
    """Point `key` to what `record` names, by conditional put. Raises `RefusedError` when a newer attempt has."""
    data = documents.to_json({**record, "attempt": attempt})
    while True:
        try:
            old, etag = store.get_with_etag(key)
        except NotFoundError:
            condition: dict[str, Any] = {"if_none_match": True}
        else:
            if (newest := _attempt_of(old)) > attempt:
                raise RefusedError(f"{store.url}/{key}: a newer attempt ({newest}) has taken over")
            condition = {"if_match": etag}
        try:
            store.put(key, data, **condition)
        except ConflictError:
            continue
        return


class _Attempt(documents.Document):
    attempt: documents.Number


def _attempt_of(pointer: bytes) -> int:
    """The attempt that wrote it, 0 for one that is damaged and may be written again."""
    try:
        return _Attempt.parse(pointer, "").attempt
    except DamagedError:
        return 0
