"""A local file in parts for an upload, each with its CRC-32."""

import base64
import hashlib
import os
from pathlib import Path
from threading import Event

from cpmbee_job.errors import StoreError
from cpmbee_job.store.s3.checksums import Algorithm, Crc32

_READ_BYTES = 1 << 20


class SourceChangedError(StoreError):
    """The file changed since it was opened."""


class UploadSource:
    """The open file at `path`, divided into `parts`."""

    def __init__(self, path: Path, descriptor: int, part_size: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._state = self._stat()
        self.size, self.part_size = self._state[0], part_size
        self.parts = [range(start, min(start + part_size, self.size)) for start in range(0, self.size, part_size)]

    def read(self, offset: int, limit: int) -> bytes:
        """Return some bytes from offset `offset`. Raises `SourceChangedError` if the file was truncated."""
        data = os.pread(self._descriptor, min(_READ_BYTES, limit), offset)
        if limit and not data:
            raise self._changed()
        return data

    def crc32(self, part: range) -> str:
        """Return the CRC-32 of a part in S3's notation."""
        return base64.b64encode(self._digest(Crc32(), part)).decode()

    def md5(self, part: range) -> str:
        """Return the MD5 of a part in hex: its ETag, unless it is encrypted with a KMS key."""
        return self._digest(hashlib.md5(usedforsecurity=False), part).hex()

    def sha256(self) -> str:
        return self._digest(hashlib.sha256(), range(self.size)).hex()

    def require_unchanged(self) -> None:
        """Raise `SourceChangedError` if the file changed."""
        if self._stat() != self._state:
            raise self._changed()

    def _digest(self, algorithm: Algorithm, part: range) -> bytes:
        while part:
            data = self.read(part.start, len(part))
            algorithm.update(data)
            part = part[len(data) :]
        return algorithm.digest()

    def _stat(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(
            f"{self._path}: changed while it was uploaded", hint="try again when no process writes to it"
        )


class PartBody:
    """One part as the body of a request. It returns larger blocks than urllib3 requests, which halves the time, and
    stops if the upload failed in another thread."""

    def __init__(self, source: UploadSource, part: range, stopped: Event) -> None:
        self._source, self._part, self._stopped = source, part, stopped
        self._position = 0

    def __len__(self) -> int:
        return len(self._part)

    def read(self, _size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise StoppedError
        left = self._part[self._position :]
        try:
            data = self._source.read(left.start, len(left))
        except SourceChangedError:
            raise StoppedError from None
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        self._position = offset

    def tell(self) -> int:
        return self._position


class StoppedError(BaseException):
    """Stops a request. Not an `Exception`, which boto3 would treat as a failed connection and retry."""
