"""Checkpoints and deltas in the store: an object, then a manifest with its hash, then a pointer.

Writer and reader stand side by side. A state holds everything but the base: trained parameters and moments in fp32,
loss scale, position, best score, patience. No random state: what is random is a function of (seed, step, rank).
"""

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from cpmbee_job import contract
from cpmbee_job.errors import ConflictError, NotFoundError, RefusedError, StoreError
from cpmbee_job.store.base import Store
from cpmbee_job.train.engine import EngineState

FORMAT_VERSION = 1
_RETRY_FOR = 600.0
"""Seconds for which a failing store is tried again before a write is given up."""


def write_checkpoint(store: Store, step: int, attempt: int, state: EngineState, progress: Mapping[str, Any]) -> None:
    """Write the state of `step`, its manifest, and move LATEST. Raises `RefusedError` when a newer attempt is there."""
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
    """The checkpoint behind a manifest. Raises `StoreError` when anything about it is not as the
    manifest says, `NotFoundError` when a part is missing."""
    manifest = _json(store, manifest_key)
    if manifest.get("version") != FORMAT_VERSION:
        raise StoreError(f"{store.url}/{manifest_key}: format version {manifest.get('version')}, not {FORMAT_VERSION}")
    data = store.get(manifest["key"])
    if len(data) != manifest["size"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise StoreError(f"{store.url}/{manifest['key']}: its bytes are not those that the manifest names")
    header_length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + header_length])["__metadata__"]["cpmbee"])
    return Checkpoint(EngineState(safetensors.torch.load(data), header["engine"]), header["progress"])


def newest_checkpoint(store: Store, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose hashes hold, or None where there is none. Those that don't hold are passed over, and
    said."""
    for step, _, key in sorted(manifests(store), reverse=True):
        try:
            return read_checkpoint(store, key)
        except (StoreError, NotFoundError, KeyError, ValueError) as error:
            warn(f"the checkpoint of step {step} can't be used, going back to the one before: {error}")
    return None


def manifests(store: Store) -> Iterator[tuple[int, int, str]]:
    """(step, attempt, key) of every checkpoint manifest in the run."""
    for found in store.list("checkpoints/"):
        parts = found.key.split("/")
        if len(parts) == 3 and parts[1].isdigit() and parts[2].startswith("manifest."):
            yield int(parts[1]), int(parts[2].split(".")[1]), found.key


def prune_checkpoints(store: Store, keep: int, attempt: int) -> None:
    """Delete all but the newest `keep` steps' checkpoints, of this and older attempts; manifests go first."""
    found = sorted(manifests(store), reverse=True)
    kept = sorted({step for step, _, _ in found}, reverse=True)[:keep]
    for step, by, key in found:
        if step not in kept and by <= attempt:
            store.delete(key)
            store.delete(contract.state_key(step, by))


def write_folder(store: Store, prefix: str, folder: Path) -> None:
    """Write the files of a delta folder; the manifest comes last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        store.upload(path, prefix + path.name)


def move_pointer(store: Store, key: str, record: Mapping[str, Any], attempt: int) -> None:
    """Point `key` to what `record` names, by conditional put. Raises `RefusedError` when a newer attempt has."""
    data = contract.to_json({**record, "attempt": attempt})
    while True:
        try:
            old, etag = store.get_with_etag(key)
        except NotFoundError:
            condition: dict[str, Any] = {"if_none_match": True}
        else:
            if int(json.loads(old)["attempt"]) > attempt:
                raise RefusedError(f"{store.url}/{key}: a newer attempt ({json.loads(old)['attempt']}) has taken over")
            condition = {"if_match": etag}
        try:
            store.put(key, data, **condition)
        except ConflictError:
            continue
        return


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
                    _with_retries(task)
            except BaseException as error:  # handed to the training thread
                self._error = error
            finally:
                self._tasks.task_done()


def _with_retries(task: Callable[[], None]) -> None:
    deadline, delay = time.monotonic() + _RETRY_FOR, 1.0
    while True:
        try:
            task()
        except StoreError:
            if time.monotonic() + delay > deadline:
                raise
            time.sleep(delay)
            delay = min(delay * 2, 30.0)
        else:
            return


def _json(store: Store, key: str) -> dict[str, Any]:
    record = json.loads(store.get(key))
    if not isinstance(record, dict):
        raise StoreError(f"{store.url}/{key}: not a JSON object")
    return record
