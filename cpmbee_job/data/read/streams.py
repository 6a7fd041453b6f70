"""Objects of a store as file streams: by ranges, decompressed according to their names."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

import zstandard

from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Progress, Store, no_progress

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSED_SUFFIXES: Final = (".gz", ".zst")

_CHUNK_BYTES = 1 << 20
_BEYOND_BYTES = 1 << 18  # size of reads past the end of a slice, to finish the line that crosses it


def object_name(store: Store, key: str) -> str:
    """Return the name of an object in messages."""
    return f"{store.url}/{key}".removeprefix("./")


def is_compressed(key: str) -> bool:
    """Return whether an object's name has a compression suffix; such an object can only be read from its start."""
    return key.lower().endswith(COMPRESSED_SUFFIXES)


@contextmanager
def open_slice(
    store: Store, key: str, size: int, start: int, end: int, on_bytes: Progress = no_progress
) -> Iterator[IO[bytes]]:
    """Open an object at `start`, decompressed. Reads may continue past `end`, in small steps.

    `on_bytes` receives the number of bytes of the object as they are read. Raises `DataError` for invalid compression.
    """
    with ObjectStream(store, key, size, start, end, on_bytes) as raw:
        plain: IO[bytes] = io.BufferedReader(raw, _CHUNK_BYTES)
        try:
            if key.lower().endswith(".gz"):
                yield gzip.GzipFile(fileobj=plain)  # type: ignore[misc]  # has all methods in use
            elif key.lower().endswith(".zst"):
                yield io.BufferedReader(_ZstdStream(plain), _CHUNK_BYTES)
            else:
                yield plain
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DataError(
                f"{object_name(store, key)}: invalid compression: {error}",
                hint="the file is truncated or damaged; copy or compress it again",
            ) from error


def count_lines(store: Store, key: str, end: int) -> int:
    """Count the line ends in the first `end` bytes of an uncompressed object."""
    with ObjectStream(store, key, end, 0, end) as raw:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: raw.read(8 * _CHUNK_BYTES), b""))


class ObjectStream(io.RawIOBase):
    """An object of a store, read from its local file if it has one, else by ranges."""

    def __init__(
        self, store: Store, key: str, size: int, start: int, end: int, on_bytes: Progress = no_progress
    ) -> None:
        self._store, self._key, self._size, self._end, self._on_bytes = store, key, size, end, on_bytes
        self._position = start
        path = store.local_path(key)
        self._file = path.open("rb", buffering=0) if path is not None else None
        if self._file is not None:
            self._file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        if self._file is not None:
            self._file.seek(self._position)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        within = self._end - self._position
        length = min(len(view), within if within > 0 else _BEYOND_BYTES, self._size - self._position)
        if length <= 0:
            return 0
        if self._file is not None:
            length = self._file.readinto(view[:length]) or 0
        else:
            view[:length] = self._store.get_range(self._key, self._position, length)
        self._on_bytes(max(0, min(length, within)))
        self._position += length
        return length

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class _ZstdStream(io.RawIOBase):
    """Decompresses all frames. Unlike the library's reader, it raises if the last one is truncated."""

    _INPUT_BYTES = 1 << 16

    def __init__(self, compressed: IO[bytes]) -> None:
        self._compressed = compressed
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self._output:
            self._input = self._input or self._compressed.read(self._INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame is truncated")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        length = min(len(view), len(self._output))
        view[:length] = self._output[:length]
        self._output = self._output[length:]
        return length
