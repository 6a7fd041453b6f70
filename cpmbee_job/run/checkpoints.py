"""A run's checkpoints and deltas as objects: which there are, which are whole, which are kept. Needs no torch."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, NotFoundError
from cpmbee_job.run import keys, records
from cpmbee_job.store.base import Store

FORMAT_VERSION = 1


class CheckpointManifest(documents.Document):
    version: int
    key: str
    size: documents.Number
    sha256: str


@dataclass(frozen=True, order=True)
class Manifest:
    """A checkpoint's manifest. A later attempt's is newer, whatever its step: that attempt had a reason to begin where
    it began, and the metrics are its."""

    attempt: int
    step: int
    modified: float | None = field(default=None, compare=False)
    """When it was written, in seconds since 1970 by the store's clock."""

    @property
    def key(self) -> str:
        return keys.manifest_key(self.step, self.attempt)

    @property
    def state_key(self) -> str:
        return keys.state_key(self.step, self.attempt)


def manifests(store: Store) -> list[Manifest]:
    """Of every checkpoint in the run, newest first."""
    found = []
    for entry in store.list("checkpoints/"):
        match = re.fullmatch(r"checkpoints/(\d+)/manifest\.(\d+)\.json", entry.key)
        if match is not None:
            found.append(Manifest(attempt=int(match[2]), step=int(match[1]), modified=entry.modified))
    return sorted(found, reverse=True)


def usable(store: Store) -> Iterator[Manifest]:
    """Those that a run may go on from, newest first. What an attempt has passed over stays so, though it holds by now,
    or has come only now, from a writer that was thought to be dead: the metrics are those of the later attempt."""
    begins = {
        int(match[1]): entry.key
        for entry in store.list("attempts/")
        if (match := re.fullmatch(r"attempts/(\d+)\.begin\.json", entry.key)) is not None
    }

    @cache
    def begun_after(attempt: int) -> tuple[int, int] | None:
        key = begins[attempt]
        try:
            after = records.CheckpointPointer.parse(store.get(key), f"{store.url}/{key}")
        except (DamagedError, NotFoundError):  # it tells nothing
            return None
        return after.attempt, after.step

    for manifest in manifests(store):
        later = [begun_after(attempt) for attempt in begins if attempt > manifest.attempt]
        if all(after is None or (manifest.attempt, manifest.step) <= after for after in later):
            yield manifest


def read_state(store: Store, manifest: Manifest) -> bytes:
    """The state behind a manifest. Raises `DamagedError` when anything about it is not as the manifest says,
    `NotFoundError` when a part is missing, `StoreError` when the store fails."""
    record = read_manifest(store, manifest.key)
    if record.key != manifest.state_key:
        raise DamagedError(f"{store.url}/{manifest.key}: names another state than its own: {record.key!r}")
    data = store.get(record.key)
    if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedError(f"{store.url}/{record.key}: its bytes are not those that the manifest names")
    return data


def read_manifest(store: Store, key: str) -> CheckpointManifest:
    record = CheckpointManifest.parse(store.get(key), f"{store.url}/{key}")
    if record.version != FORMAT_VERSION:
        raise DamagedError(f"{store.url}/{key}: format version {record.version}, not {FORMAT_VERSION}")
    return record


def superseded(found: Sequence[Manifest], keep: int) -> list[Manifest]:
    """Those of all (newest first) that are not of the newest `keep` steps."""
    kept = list(dict.fromkeys(manifest.step for manifest in found))[:keep]
    return [manifest for manifest in found if manifest.step not in kept]


def prune_checkpoints(store: Store, keep: int, attempt: int) -> None:
    """Delete all but the newest `keep` steps' checkpoints, of this and older attempts; manifests go first."""
    for manifest in superseded(manifests(store), keep):
        if manifest.attempt <= attempt:
            store.delete(manifest.key)
            store.delete(manifest.state_key)


@dataclass(frozen=True, order=True)
class DeltaFolder:
    step: int
    attempt: int

    @property
    def prefix(self) -> str:
        return keys.delta_prefix(self.step, self.attempt)


def delta_folders(keys: Iterable[str]) -> list[DeltaFolder]:
    """The folders that objects of these keys lie in, the one of the last step first."""
    matches = (re.match(r"delta/(\d+)\.(\d+)/", key) for key in keys)
    return sorted({DeltaFolder(int(match[1]), int(match[2])) for match in matches if match}, reverse=True)


def pointed_deltas(store: Store) -> set[str]:
    """The prefixes that BEST and LAST name. Raises `DamagedError` for one that names nothing."""
    found = set()
    for key in (keys.BEST, keys.LAST):
        try:
            found.add(records.DeltaPointer.parse(store.get(key), f"{store.url}/{key}").prefix)
        except NotFoundError:
            continue
    return found


def prune_deltas(store: Store, keep: int, attempt: int) -> None:
    """Delete delta folders of this and older attempts but for those that BEST and LAST name, and the newest `keep`."""
    folders = delta_folders(entry.key for entry in store.list("delta/"))
    pointed = pointed_deltas(store)
    for folder in folders[keep:]:
        if folder.prefix not in pointed and folder.attempt <= attempt:
            for part in sorted(store.list(folder.prefix), key=lambda part: not part.key.endswith("/manifest.json")):
                store.delete(part.key)


def check_delta(store: Store, folder: DeltaFolder) -> None:
    """Raises `DamagedError` or `NotFoundError` where a file of the folder is not as its manifest says."""
    key = f"{folder.prefix}manifest.json"
    for name, file in records.DeltaManifest.parse(store.get(key), f"{store.url}/{key}").files.items():
        data = store.get(folder.prefix + name)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedError(f"{store.url}/{folder.prefix}{name}: its bytes are not those that the manifest names")
