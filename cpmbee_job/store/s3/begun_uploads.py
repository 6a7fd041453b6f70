"""Local records of the uploads that this machine has begun and not completed.

S3 keeps the parts of an incomplete upload, but not what it was for. So the cache folder keeps its id, in a file that is
locked while a process continues the upload.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.store.files import open_locked


class BegunUpload(documents.Document):
    """An incomplete upload."""

    id: str
    writer: str
    """For the object's metadata."""
    sha256: str | None
    """For the object's metadata; None if it was unknown."""
    checks_crc: bool
    """Whether the server verifies the CRC-32 of each part."""


class UploadRecord:
    """The locked file of one upload."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def read(self) -> BegunUpload | None:
        with suppress(DamagedError):
            return BegunUpload.parse(os.pread(self._descriptor, 1 << 16, 0), str(self._path))
        return None

    def write(self, begun: BegunUpload) -> None:
        with suppress(OSError):  # such as a full disk: then the upload cannot be continued
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, documents.to_json(begun.model_dump()), 0)

    def clear(self) -> None:
        """Remove the upload from the record."""
        os.ftruncate(self._descriptor, 0)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class UploadRecords:
    """The records of one object, one for each combination of size, part size and encryption."""

    def __init__(self, bucket: str, target: str) -> None:
        self._folder = default_cache_dir() / "uploads"
        self._prefix = documents.digest([bucket, target])

    @contextmanager
    def held(self, *settings: Any) -> Iterator[UploadRecord | None]:
        """Create or open, and lock, the record for these settings; None if another process holds it or it fails."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        with _held(self._folder / f"{self._prefix}.{documents.digest(settings)}.json") as record:
            yield record

    def abandoned(self) -> Iterator[UploadRecord]:
        """Yield the records that no other process holds, each locked meanwhile."""
        for path in sorted(self._folder.glob(f"{self._prefix}.*")):
            with _held(path) as record:
                if record is not None:
                    yield record


@contextmanager
def _held(path: Path) -> Iterator[UploadRecord | None]:
    descriptor = None
    with suppress(OSError):
        descriptor = open_locked(path, 0o600)
    if descriptor is None:
        yield None
        return
    with os.fdopen(descriptor):
        yield UploadRecord(path, descriptor)
