"""Large objects that are read by ranges, which this machine keeps: a process that starts again finds them on its disk.

A range is a file of its own, with a checksum behind it. Nothing depends on it, so an object is kept only where it takes
no more than half of what is free.
"""

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

SMALLEST_KEPT = 64 << 10
"""Bytes. What is shorter comes as fast from the store."""
_CHECKSUM_BYTES = 4


class KeptObject:
    """The object `found` of a store, as it was when it was found. Safe to use in several threads and processes."""

    def __init__(self, store: Store, found: ObjectInfo, cache_dir: Path) -> None:
        self.name = f"{store.url}/{found.key}"
        self.size = found.size
        self.tag = found.etag
        self._store, self._key = store, found.key
        self._folder = cache_dir / "ranges" / documents.digest([self.name, found.size, found.etag])
        self._may_keep: bool | None = None  # not known yet

    def is_near(self, start: int, length: int) -> bool:
        """Whether this machine has kept that range."""
        try:
            return self._place(start, length).stat().st_size == length + _CHECKSUM_BYTES
        except OSError:
            return False

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill one buffer after the other with the bytes from `start`. Raises `StoreError` where the object is another
        by now."""
        length = sum(map(len, buffers))
        if self._read_kept(start, length, buffers):
            return
        self._store.read_into(self._key, start, buffers, self.tag)
        if length >= SMALLEST_KEPT:
            self._keep(start, length, buffers)

    def _place(self, start: int, length: int) -> Path:
        return self._folder / f"{start}-{length}"

    def _read_kept(self, start: int, length: int, buffers: Sequence[memoryview]) -> bool:
        try:
            with self._place(start, length).open("rb") as file:
                whole = all(file.readinto(buffer) == len(buffer) for buffer in buffers)
                return whole and file.read() == _checksum(buffers)
        except OSError:
            return False

    def _keep(self, start: int, length: int, buffers: Sequence[memoryview]) -> None:
        if self._may_keep is False:
            return
        draft = self._folder / f".{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._may_keep is None and not self._has_room():
                self._may_keep = False
                return
            self._may_keep = True
            try:
                with draft.open("wb") as file:
                    file.writelines([*buffers, _checksum(buffers)])
                draft.replace(self._place(start, length))
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            self._may_keep = False
            log.warning("%s is not kept in %s: %s", self.name, self._folder, error.strerror or error)

    def _has_room(self) -> bool:
        kept = 0
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # another reader's, which has just got its name
                kept += entry.stat().st_size
        needed, free = self.size - kept, shutil.disk_usage(self._folder).free
        if needed > free / 2:
            log.warning("%s is not kept in %s: only %.1f GB are free there", self.name, self._folder, free / 1e9)
        return needed <= free / 2


def _checksum(buffers: Sequence[memoryview]) -> bytes:
    value = 0
    for buffer in buffers:
        value = zlib.crc32(buffer, value)
    return value.to_bytes(_CHECKSUM_BYTES, "little")
