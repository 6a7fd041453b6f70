"""Weight files on disk, in memory or in an object store, read by ranges."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cpmbee_job.errors import ModelError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class WeightFile(Protocol):
    """A weight file. Thread-safe."""

    @property
    def name(self) -> str:
        """Path or URL. The suffix gives the format."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def tag(self) -> str:
        """Changes when the content changes; empty if that is unknown without reading."""

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers one after the other with the bytes from `start`. Raises a `CpmbeeError` if the read fails or
        the file has changed."""

    def is_near(self, start: int, length: int) -> bool:
        """Return whether this machine has these bytes, so that one of its ranks should read them."""


class LocalFile:
    """A local file. It is read, not mapped: mapped pages would count as this process's memory."""

    tag = ""

    def __init__(self, path: Path) -> None:
        """Raises `ModelError` if it does not exist."""
        self.path = path
        self.name = str(path)
        try:
            state = path.stat()
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from error
        self.size = state.st_size
        self._identity = _identity(state)

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                for buffer in buffers:
                    filled = 0
                    while count := file.readinto(buffer[filled:]):
                        filled += count
                    if filled < len(buffer):
                        raise ModelError(
                            f"{self.path}: unexpected end of file at byte {file.tell()}", hint="copy it again"
                        )
                # A writer updates the modification time only after the bytes.
                if _identity(os.fstat(file.fileno())) != self._identity:
                    raise ModelError(
                        f"{self.path}: changed while it was read", hint="try again when the copy is complete"
                    )
        except OSError as error:
            raise ModelError(f"{self.path}: {error.strerror}") from error

    def is_near(self, start: int, length: int) -> bool:  # noqa: ARG002
        return True


class MemoryFile:
    """A tensor in memory, as a file of its bytes."""

    tag = ""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.size = tensor.numel() * tensor.element_size()
        self._tensor = tensor

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        content = tensor_bytes(self._tensor)
        for buffer in buffers:
            buffer[:] = content[start : start + len(buffer)]
            start += len(buffer)

    def is_near(self, start: int, length: int) -> bool:  # noqa: ARG002
        return True


class RangeReader(io.RawIOBase):
    """A `WeightFile` as a raw file object (to be wrapped in an `io.BufferedReader`)."""

    def __init__(self, file: WeightFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self.known: dict[int, bytes] = {}
        """Prefetched bytes by offset."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._position))
        if (known := self.known.get(self._position)) is not None:
            count = min(count, len(known))
            view[:count] = known[:count]
        elif count:
            self._file.read_into(self._position, [view[:count]])
        self._position += count
        return count


def read_bytes(file: WeightFile, start: int, length: int) -> bytes:
    """Read a short range."""
    data = bytearray(length)
    file.read_into(start, [memoryview(data)])
    return bytes(data)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in element order; its own memory if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
