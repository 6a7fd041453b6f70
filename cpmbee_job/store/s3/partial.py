"""A file that is written in ranges. After an interruption, its complete ranges are kept.

Until it is whole it is one hidden file: the content, then a byte for each range (1: complete), then a digest of what
the file will be. A later call with the same digest continues it, any other call starts from the beginning.

Nothing is flushed to the disk: after a power failure, a range that is marked complete may not be, and a complete file
may be truncated. A checksum finds the former; callers that keep the file prevent the latter with `files.sync`.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpmbee_job.store import files


class PartialFile:
    """The content of the file in ranges of `range_size` bytes, the last one shorter. Safe for several threads."""

    def __init__(self, descriptor: int, identity: str, size: int, range_size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.ranges = [range(start, min(start + range_size, size)) for start in range(0, size, range_size)]
        seal = hashlib.sha256(f"{identity}\n{size}\n{range_size}".encode()).digest()
        end = size + len(self.ranges)
        found = os.fstat(descriptor).st_size
        if found != end + len(seal) or os.pread(descriptor, len(seal), end) != seal:
            if found:  # ext4 flushes a file that was ever truncated when it is closed
                os.truncate(descriptor, 0)
            self._write(end, seal)

    @property
    def complete(self) -> set[int]:
        """Indices of the complete ranges."""
        flags = os.pread(self._descriptor, len(self.ranges), self.size)
        return {number for number, flag in enumerate(flags) if flag == 1}

    def write(self, number: int, offset: int, data: bytes) -> None:
        """Write `data` at `offset` of range `number`."""
        self._write(self.ranges[number].start + offset, data)

    def mark_complete(self, number: int) -> None:
        """Mark range `number` as complete."""
        self._write(self.size + number, b"\1")

    def read(self, number: int) -> Iterator[bytes]:
        """Yield the content of range `number` in pieces."""
        wanted = self.ranges[number]
        for start in wanted[:: files.COPY_BYTES]:
            yield os.pread(self._descriptor, min(files.COPY_BYTES, wanted.stop - start), start)

    def discard(self) -> None:
        """Mark all ranges as incomplete."""
        self._write(self.size, bytes(len(self.ranges)))

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written


@contextmanager
def partial_file(path: Path, identity: str, size: int, range_size: int) -> Iterator[PartialFile]:
    """Open the hidden file of `path`, to be completed; rename it to `path` if the block succeeds. If the block fails,
    the file is kept for the next call with the same `identity` (the origin and its version), unless it has no complete
    range or the disk failed. If another process has it open, this one gets a file of its own. Raises `DiskError`."""
    with files.translate_os_errors(path):
        files.require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor, reusable = _open(path)
        with os.fdopen(descriptor):
            partial = PartialFile(descriptor, identity, size, range_size)
            try:
                yield partial
                os.truncate(descriptor, size)
                temporary.replace(path)
            except BaseException as error:
                if isinstance(error, OSError) or not (reusable and partial.complete):
                    temporary.unlink(missing_ok=True)
                raise


def boot_id() -> str:
    """Return an id that changes with every boot."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii") if path.exists() else ""


def _open(path: Path) -> tuple[Path, int, bool]:
    """Return the hidden file of `path`, its descriptor with a lock, and whether a later call finds it."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    shared = path.with_name(f".{path.name[:60]}.{digest}{files.TEMPORARY}")
    with suppress(OSError):  # owned by another user, or no locks on this file system
        if (descriptor := files.open_locked(shared)) is not None:
            return shared, descriptor, True
    own = files.temporary_name(path)
    return own, os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), False
