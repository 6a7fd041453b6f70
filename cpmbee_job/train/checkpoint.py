"""Checkpoints and deltas in the store: an object, then a manifest with its hash, then a pointer.

Writer and reader stand side by side. A state holds everything but the base: trained parameters and moments in fp32,
loss scale, position, best score, patience. No random state: what is random is a function of (seed, step, rank).
"""

import hashlib
import json
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from cpmbee_job import contract
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError, RefusedError
from cpmbee_job.store.base import Store
from cpmbee_job.store.patience import patiently
from cpmbee_job.train.elastic import newest_attempt
from cpmbee_job.train.engine import EngineState

FORMAT_VERSION = 1


def write_checkpoint(store: Store, step: int, attempt: int, state: EngineState, progress: Mapping[str, Any]) -> None:
    """Write the state of `step`, its manifest, and move LATEST. Raises `RefusedError` when a newer attempt is there."""
    require_newest(store, attempt)
    header = {"version": FORMAT_VERSION, "step": step, "attempt": attempt, "engine": state.values, "progress": progress}
    # safetensors keeps text only beside the tensors
    data = safetensors.torch.save(dict(state.tensors), metadata={"cpmbee": json.dumps(header, sort_keys=True)})
    key = contract.state_key(step, attempt)
    store.put(key, data)
    manifest = {
        "version": FORMAT_VERSION,
        "step": step,
        "attempt": attempt,
        "key": key,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    store.put(contract.manifest_key(step, attempt), contract.to_json(manifest))
    move_pointer(store, contract.LATEST, {"step": step, "attempt": attempt}, attempt)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the engine's state, and the loop's `Position` as a record."""

    engine: EngineState
    progress: dict[str, Any]


def read_checkpoint(store: Store, manifest_key: str) -> Checkpoint:
    """The checkpoint behind a manifest. Raises `DamagedError` when anything about it is not as the
    manifest says, `NotFoundError` when a part is missing, `StoreError` when the store fails."""
    manifest = _json(store, manifest_key)
    if manifest.get("version") != FORMAT_VERSION:
        found = manifest.get("version")
        raise DamagedError(f"{store.url}/{manifest_key}: format version {found}, not {FORMAT_VERSION}")
    data = store.get(manifest["key"])
    if len(data) != manifest["size"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise DamagedError(f"{store.url}/{manifest['key']}: its bytes are not those that the manifest names")
    header_length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + header_length])["__metadata__"]["cpmbee"])
    return Checkpoint(EngineState(safetensors.torch.load(data), header["engine"]), header["progress"])


def newest_checkpoint(store: Store, warn: Callable[[str], None]) -> tuple[str, Checkpoint] | None:
    """The newest checkpoint whose hashes hold and its manifest's key, or None where there is none. Those that don't
    hold are passed over, and said; a store that fails is no reason to pass over one."""
    for found in manifests(store):
        try:
            return found.key, read_checkpoint(store, found.key)
        except (DamagedError, NotFoundError, KeyError, TypeError, ValueError) as error:
            warn(f"the checkpoint of step {found.step} can't be used, going back to the one before: {error}")
    return None


@dataclass(frozen=True, order=True)
class Manifest:
    """A checkpoint's manifest. A later attempt's is newer, whatever its step: that attempt had a reason to begin where
    it began, and the metrics are its."""

    attempt: int
    step: int
    key: str


def manifests(store: Store) -> list[Manifest]:
    """Of every checkpoint in the run, newest first."""
    found = []
    for entry in store.list("checkpoints/"):
        match = re.fullmatch(r"checkpoints/(\d+)/manifest\.(\d+)\.json", entry.key)
        if match is not None:
            found.append(Manifest(attempt=int(match[2]), step=int(match[1]), key=entry.key))
    return sorted(found, reverse=True)


def prune_checkpoints(store: Store, keep: int, attempt: int) -> None:
    """Delete all but the newest `keep` steps' checkpoints, of this and older attempts; manifests go first."""
    found = manifests(store)
    kept = list(dict.fromkeys(manifest.step for manifest in found))[:keep]
    for manifest in found:
        if manifest.step not in kept and manifest.attempt <= attempt:
            store.delete(manifest.key)
            store.delete(contract.state_key(manifest.step, manifest.attempt))


def prune_deltas(store: Store, keep: int, attempt: int) -> None:
    """Delete delta folders of this and older attempts but for those that BEST and LAST name, and the newest `keep`."""
    found = sorted({(int(step), int(by)) for step, by in _delta_folders(store)}, reverse=True)
    pointed = {json.loads(store.get(key))["prefix"] for key in (contract.BEST, contract.LAST) if store.info(key)}
    for step, by in found[keep:]:
        prefix = contract.delta_prefix(step, by)
        if prefix not in pointed and by <= attempt:
            for part in sorted(store.list(prefix), key=lambda part: not part.key.endswith("/manifest.json")):
                store.delete(part.key)


def _delta_folders(store: Store) -> Iterator[tuple[str, str]]:
    for found in store.list("delta/"):
        match = re.match(r"delta/(\d+)\.(\d+)/", found.key)
        if match:
            yield match[1], match[2]


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
    data = contract.to_json({**record, "attempt": attempt})
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


def _attempt_of(pointer: bytes) -> int:
    """The attempt that wrote it, 0 for one that is damaged and may be written again."""
    try:
        return int(json.loads(pointer)["attempt"])
    except (ValueError, KeyError, TypeError):
        return 0


class Uploader:
    """A background thread that writes to the store, in order; a failing store is tried again for ten minutes.

    An error that lasts is raised by the next `submit` or by `finish`.
    """

    def __init__(self) -> None:
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="uploader", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task` after those before it. Waits while two are pending."""
        self._raise()
        self._tasks.put(task)

    def finish(self) -> None:
        """Wait until all is written."""
        self._tasks.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                if task is not None and self._error is None:
                    patiently(task)
            except BaseException as error:  # handed to the training thread
                self._error = error
            finally:
                self._tasks.task_done()


def _json(store: Store, key: str) -> dict[str, Any]:
    record = json.loads(store.get(key))
    if not isinstance(record, dict):
        raise DamagedError(f"{store.url}/{key}: not a JSON object")
    return record
