"""A file that arrives in ranges, of which those that are there already survive a cut.

Until it is whole it is one hidden file beside its place: the content, and behind it the record, which is a byte for
each range (1: there) and the digest of what the file is to become. A later call for the same goes on with it, one
for anything else begins anew.

Nothing waits for the disk: after a power failure the record may say more than is there, and so may a file that was
complete. The first is for a checksum to find out, the second for those who keep the file (`files.sync`).
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpmbee_job.store.files import COPY_BYTES, TEMPORARY, explained, is_open_file, require_replaceable, temporary_name


class Partial:
    """The file's content by ranges of `range_size` bytes, the last one shorter. Safe to use from several threads."""

    def __init__(self, descriptor: int, identity: str, size: int, range_size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.ranges = [range(start, min(start + range_size, size)) for start in range(0, size, range_size)]
        seal = hashlib.sha256(f"{identity}\n{size}\n{range_size}".encode()).digest()
        end = size + len(self.ranges)
        found = os.fstat(descriptor).st_size
        if found != end + len(seal) or os.pread(descriptor, len(seal), end) != seal:
            if found:  # a file that was ever cut to nothing, ext4 sends to the disk at once when it is closed
                os.truncate(descriptor, 0)
            self._write(end, seal)

    @property
    def whole(self) -> set[int]:
        """Numbers of the ranges that are there."""
        flags = os.pread(self._descriptor, len(self.ranges), self.size)
        return {number for number, flag in enumerate(flags) if flag == 1}

    def write(self, number: int, offset: int, data: bytes) -> None:
        """Put `data` at `offset` bytes into range `number`."""
        self._write(self.ranges[number].start + offset, data)

    def keep(self, number: int) -> None:
        """Range `number` is complete."""
        self._write(self.size + number, b"\1")

    def read(self, number: int) -> Iterator[bytes]:
        """The content of range `number`, in pieces."""
        wanted = self.ranges[number]
        for start in wanted[::COPY_BYTES]:
            yield os.pread(self._descriptor, min(COPY_BYTES, wanted.stop - start), start)

    def forget(self) -> None:
        """Nothing of it is any good."""
        self._write(self.size, bytes(len(self.ranges)))

    def finish(self) -> None:
        """Leaves the content alone."""
        os.truncate(self._descriptor, self.size)

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written


@contextmanager
def partial_file(path: Path, identity: str, size: int, range_size: int) -> Iterator[Partial]:
    """What is there of the file at `path`, to be completed; it becomes `path` if the block ends well.

    If not, it is left for the next call with the same `identity` (the origin and its version), unless there is no range
    in it yet or this machine's disk is what failed. Where another process is at the same file this one gets a file of
    its own. Raises `StoreError` in words for what the disk refuses.
    """
    with explained(path):
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor, lasting = _open(path)
        try:
            partial = Partial(descriptor, identity, size, range_size)
            try:
                yield partial
                partial.finish()
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            except BaseException:
                if not (lasting and partial.whole):
                    temporary.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Another one after a power failure."""
    place = Path("/proc/sys/kernel/random/boot_id")
    return place.read_text(encoding="ascii") if place.exists() else ""


def _open(path: Path) -> tuple[Path, int, bool]:
    """The hidden file of `path`, its descriptor, which holds the lock on it, and whether a later call would find it."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    shared = path.with_name(f".{path.name[:60]}.{digest}{TEMPORARY}")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        while True:
            descriptor = os.open(shared, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_open_file(shared, descriptor):
                    return shared, descriptor, True
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder has just completed or removed it
    except OSError:  # another process is at it, it is another user's, or there are no locks here
        own = temporary_name(path)
        return own, os.open(own, flags | os.O_EXCL, 0o666), False
