"""A local file as S3 takes it: in parts, each with its CRC-32."""

import base64
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from cpmbee_job.errors import StoreError

_READ_BYTES = 1 << 20


class SourceChangedError(StoreError):
    """Somebody has written to the file since it was opened."""


class Source:
    """The open file at `path`, cut into `parts`."""

    def __init__(self, path: Path, descriptor: int, part_size: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._state = self._look()
        self.size, self.part_size = self._state[0], part_size
        self.parts = [range(start, min(start + part_size, self.size)) for start in range(0, self.size, part_size)]

    def read(self, place: int, limit: int) -> bytes:
        """Some bytes from `place` on. Raises `SourceChangedError` where there should be some and are none."""
        data = os.pread(self._descriptor, min(_READ_BYTES, limit), place)
        if limit and not data:
            raise self._changed()
        return data

    def crc32(self, part: range) -> str:
        """As S3 writes it."""
        crc = 0
        for data in self._pieces(part):
            crc = zlib.crc32(data, crc)
        return base64.b64encode(crc.to_bytes(4, "big")).decode()

    def md5(self, part: range) -> str:
        """The part's ETag, where it is not encrypted with a key of KMS."""
        digest = hashlib.md5(usedforsecurity=False)
        for data in self._pieces(part):
            digest.update(data)
        return digest.hexdigest()

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for data in self._pieces(range(self.size)):
            digest.update(data)
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Raises `SourceChangedError`."""
        if self._look() != self._state:
            raise self._changed()

    def _pieces(self, part: range) -> Iterator[bytes]:
        while part:
            data = self.read(part.start, len(part))
            part = part[len(data) :]
            yield data

    def _look(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(
            f"{self._path}: changed while it was uploaded", hint="try again when nobody writes to it any more"
        )


class Body:
    """One part of a source for boto3. It hands out larger blocks than urllib3 asks for, which halves the time that
    takes, and ends in the middle where the upload has failed elsewhere."""

    def __init__(self, source: Source, part: range, stopped: Event) -> None:
        self._source, self._part, self._stopped = source, part, stopped
        self._place = 0

    def __len__(self) -> int:
        return len(self._part)

    def read(self, _size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise StoppedError
        left = self._part[self._place :]
        try:
            data = self._source.read(left.start, len(left))
        except SourceChangedError:
            raise StoppedError from None
        self._place += len(data)
        return data

    def seek(self, place: int) -> None:
        self._place = place

    def tell(self) -> int:
        return self._place


class StoppedError(BaseException):
    """Not one that boto3 would take for a failed connection and try again."""
