"""Objects as streams of lines: ranges of a store's object, decompressed where its name says so."""

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
_BEYOND_BYTES = 1 << 18  # what is read at a time to finish the line that crosses a slice's end


def is_compressed(key: str) -> bool:
    """Whether an object's name says so; such an object can only be read from its start."""
    return key.lower().endswith(COMPRESSED_SUFFIXES)


@contextmanager
def open_slice(
    store: Store, key: str, size: int, start: int, end: int, on_bytes: Progress = no_progress
) -> Iterator[IO[bytes]]:
    """The object's bytes from `start` on, decompressed; reading goes on behind `end` where it is asked to.

    `on_bytes` learns how many bytes of the object have been read. Broken compression raises `DataError`.
    """
    with _ObjectStream(store, key, size, start, end, on_bytes) as raw:
        plain: IO[bytes] = io.BufferedReader(raw, _CHUNK_BYTES)
        try:
            if key.lower().endswith(".gz"):
                yield gzip.GzipFile(fileobj=plain)  # type: ignore[misc]  # has all of it that is used
            elif key.lower().endswith(".zst"):
                yield io.BufferedReader(_ZstdStream(plain), _CHUNK_BYTES)
            else:
                yield plain
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DataError(
                f"{store.url}/{key}: broken compression: {error}",
                hint="the file is cut short or damaged; copy or compress it again",
            ) from error


def open_object(store: Store, key: str, size: int) -> io.RawIOBase:
    """The object's bytes as they are, to be read from any place."""
    return _ObjectStream(store, key, size, 0, size, no_progress)


def count_lines(store: Store, key: str, end: int) -> int:
    """Line ends in the first `end` bytes of an object that is not compressed."""
    with _ObjectStream(store, key, end, 0, end, no_progress) as raw:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: raw.read(8 * _CHUNK_BYTES), b""))


class _ObjectStream(io.RawIOBase):
    """An object of a store, read by ranges; from the disk itself where it is on one."""

    def __init__(self, store: Store, key: str, size: int, start: int, end: int, on_bytes: Progress) -> None:
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
    """Decompresses frame after frame; unlike the library's own reader it raises where the last one is cut short."""

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
                    raise EOFError("the last frame ends early")
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
