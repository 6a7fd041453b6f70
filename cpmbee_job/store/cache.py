"""Keep objects of S3 on this machine's disk, once for all processes, so that a restarted process finds them there.

Models and shards are copied. Weights are read by ranges: each is a file with a checksum, if there is plenty of room.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.errors import NotFoundError, StoreError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store, changed
from cpmbee_job.store.files import FileStore, sync, translate_os_errors
from cpmbee_job.store.urls import open_store

log = logging.getLogger(__name__)

SMALLEST_CACHED = 64 << 10
"""Bytes. Shorter ranges arrive as fast from the store."""
_CHECKSUM_BYTES = 4


@contextmanager
def one_process(lock: Path) -> Iterator[None]:
    """Let one process after the other run the block."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def kept(store: Store, key: str, path: Path) -> Iterator[Path]:
    """Yield a copy of an object, to be verified; if the block succeeds, keep it as `path`, not to be verified again."""
    arrived = path.with_name(f".{path.name}.arrived")
    store.download(key, arrived)
    yield arrived
    sync(arrived)  # it must be intact even after a power failure
    arrived.replace(path)


def fetch_folder(
    url: str, storage: StorageSpec | None = None, cache_dir: Path | None = None, only: Container[str] | None = None
) -> Path:
    """Return a local folder with the objects directly in the folder at `url`, without its subfolders.

    A local folder is returned as is. For any other, the objects (or those in `only`) are copied to `cache_dir` under a
    digest of the URL and all ETags, except files that are already there. Of several processes, one copies and the
    others wait. Raises `NotFoundError` for a missing or empty folder, `StoreError` if a copy fails.
    """
    store = open_store(url, storage)
    if isinstance(store, FileStore):
        _require_files(url, store.root)
        return store.root
    objects = [entry for entry in store.list() if "/" not in entry.key]
    if not objects:
        raise NotFoundError(f"{url}: no such folder, or no files in it", hint="name the folder, and check the bucket")
    listing = "\n".join([url.rstrip("/"), *(f"{entry.key}\t{entry.size}\t{entry.etag}" for entry in objects)])
    digest = hashlib.sha256(listing.encode()).hexdigest()[:32]
    folder = (cache_dir or default_cache_dir()).absolute() / digest
    if only is not None:
        objects = [entry for entry in objects if entry.key in only]
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with one_process(folder.with_suffix(".lock")):
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
            missing = [entry for entry in objects if sizes.get(entry.key) != entry.size]
            _require_space(folder, sum(entry.size for entry in missing))
            for entry in missing:
                with kept(store, entry.key, folder / entry.key):
                    if store.info(entry.key) != entry:
                        raise changed(f"{store.url}/{entry.key}")
    return folder


def _require_files(url: str, folder: Path) -> None:
    with translate_os_errors(folder):
        if folder.is_file():
            raise NotFoundError(f"{url}: a file, not a folder", hint="name the folder that contains it")
        if not folder.is_dir():
            raise NotFoundError(f"{url}: no such folder", hint=f"its path is {folder}")
        if not any(entry.is_file() for entry in folder.iterdir()):
            raise NotFoundError(f"{url}: no files in that folder")


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {needed / 1e9:.1f} GB required, {free / 1e9:.1f} GB free",
            hint="free space, or set CPMBEE_CACHE to a folder on a larger disk",
        )


class CachedObject:
    """The object `found` of a store at its current ETag, read by ranges, which are cached if the object takes at most
    half of the free space. Safe for several threads and processes."""

    def __init__(self, store: Store, found: ObjectInfo, cache_dir: Path) -> None:
        self.name = f"{store.url}/{found.key}"
        self.size, self.tag = found.size, found.etag
        self._store, self._key = store, found.key
        self._folder = cache_dir / "ranges" / documents.digest([self.name, found.size, found.etag])
        self._may_cache: bool | None = None  # unknown until the first range

    def is_near(self, start: int, length: int) -> bool:
        """Return whether that range is cached."""
        with suppress(OSError):
            return self._path(start, length).stat().st_size == length + _CHECKSUM_BYTES
        return False

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers in order with the bytes from `start`. Raises `StoreError` if the object changed."""
        length = sum(map(len, buffers))
        if self._read_cached(start, length, buffers):
            return
        self._store.read_into(self._key, start, buffers, self.tag)
        if length >= SMALLEST_CACHED:
            self._write_cache(start, length, buffers)

    def _path(self, start: int, length: int) -> Path:
        return self._folder / f"{start}-{length}"

    def _read_cached(self, start: int, length: int, buffers: Sequence[memoryview]) -> bool:
        with suppress(OSError), self._path(start, length).open("rb") as file:
            whole = all(file.readinto(buffer) == len(buffer) for buffer in buffers)
            return whole and file.read() == _checksum(buffers)
        return False

    def _write_cache(self, start: int, length: int, buffers: Sequence[memoryview]) -> None:
        if self._may_cache is False:
            return
        draft = self._folder / f".{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._may_cache = self._may_cache or self._has_room()
            if not self._may_cache:
                return
            try:
                with draft.open("wb") as file:
                    file.writelines([*buffers, _checksum(buffers)])
                draft.replace(self._path(start, length))
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            self._may_cache = False
            log.warning("%s is not cached in %s: %s", self.name, self._folder, error.strerror or error)

    def _has_room(self) -> bool:
        cached = 0
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # another reader has just renamed it
                cached += entry.stat().st_size
        free = shutil.disk_usage(self._folder).free
        if self.size - cached > free / 2:
            log.warning("%s is not cached in %s: only %.1f GB are free", self.name, self._folder, free / 1e9)
            return False
        return True


def _checksum(buffers: Sequence[memoryview]) -> bytes:
    value = 0
    for buffer in buffers:
        value = zlib.crc32(buffer, value)
    return value.to_bytes(_CHECKSUM_BYTES, "little")
