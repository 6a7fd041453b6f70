"""Which uploads this machine has begun and not completed.

S3 keeps the parts of an unfinished upload, but does not tell what it was for. So its id lies in the cache folder,
locked while a process is at it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from cpmbee_job import documents
from cpmbee_job.store.cache import default_cache_dir
from cpmbee_job.store.files import is_open_file


@dataclass(frozen=True)
class Begun:
    """An upload that is not completed yet."""

    id: str
    writer: str
    """What the object's metadata will name."""
    sha256: str | None
    """Likewise; None where it was not known."""
    checks_crc: bool
    """The server compares each part with its CRC-32."""

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        try:
            return TypeAdapter(cls).validate_json(data, strict=True)
        except ValueError:
            return None


class Record:
    """A locked file for one upload."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def read(self) -> Begun | None:
        return Begun.parse(os.pread(self._descriptor, 1 << 16, 0))

    def write(self, begun: Begun) -> None:
        with suppress(OSError):  # a full disk, say: it can't be gone on with, then
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, documents.to_json(asdict(begun)), 0)

    def clear(self) -> None:
        """There is nothing to go on with."""
        os.ftruncate(self._descriptor, 0)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class Records:
    """The records of one object: one for each size that it was to have, and for each way to cut and encrypt it."""

    def __init__(self, bucket: str, target: str) -> None:
        self._folder = default_cache_dir() / "uploads"
        self._prefix = documents.digest([bucket, target])

    @contextmanager
    def held(self, *settings: Any) -> Iterator[Record | None]:
        """The record for these settings, made if need be; None where another process has it, or it can't be made."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        with _held(self._folder / f"{self._prefix}.{documents.digest(settings)}.json") as record:
            yield record

    def abandoned(self) -> Iterator[Record]:
        """Those that no process has, each while it is yielded."""
        for path in sorted(self._folder.glob(f"{self._prefix}.*")):
            with _held(path) as record:
                if record is not None:
                    yield record


@contextmanager
def _held(path: Path) -> Iterator[Record | None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield None
        return
    try:
        yield Record(path, descriptor) if _lock(path, descriptor) else None
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return is_open_file(path, descriptor)  # else its holder has just removed it
