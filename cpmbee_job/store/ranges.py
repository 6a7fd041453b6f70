"""Objects that are read by ranges and cached on this machine's disk, so that a restarted process finds them there. Each
range is a file with a checksum. An object is cached only if it takes at most half of the free space."""

import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.store.base import ObjectInfo, Store

log = logging.getLogger(__name__)

SMALLEST_CACHED = 64 << 10
"""Bytes. Shorter ranges arrive as fast from the store."""
_CHECKSUM_BYTES = 4


class CachedObject:
    """The object `found` of a store, at its current ETag. Safe for several threads and processes."""

    def __init__(self, store: Store, found: ObjectInfo, cache_dir: Path) -> None:
        self.name = f"{store.url}/{found.key}"
        self.size = found.size
        self.tag = found.etag
        self._store, self._key = store, found.key
        self._folder = cache_dir / "ranges" / documents.digest([self.name, found.size, found.etag])
        self._may_cache: bool | None = None  # unknown until the first range

    def is_near(self, start: int, length: int) -> bool:
        """Return whether that range is cached."""
        try:
            return self._path(start, length).stat().st_size == length + _CHECKSUM_BYTES
        except OSError:
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
        try:
            with self._path(start, length).open("rb") as file:
                whole = all(file.readinto(buffer) == len(buffer) for buffer in buffers)
                return whole and file.read() == _checksum(buffers)
        except OSError:
            return False

    def _write_cache(self, start: int, length: int, buffers: Sequence[memoryview]) -> None:
        draft = self._folder / f".{uuid.uuid4().hex}"
        try:
            if self._may_cache is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._may_cache = self._has_room()
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
