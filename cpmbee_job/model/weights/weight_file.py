"""Files of weights, wherever they lie: read by ranges, so that nobody needs a whole one in memory or on disk."""

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cpmbee_job.errors import ModelError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class WeightFile(Protocol):
    """A file of weights. Several threads may read it at once."""

    @property
    def name(self) -> str:
        """Path or URL, for messages; its ending tells the format."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def tag(self) -> str:
        """Another one when the content changes; empty where only reading would tell."""

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill one buffer after the other with the bytes from `start`. Raises an error of ours where they do not come,
        or where the file is no longer the one that was found."""

    def is_near(self, start: int, length: int) -> bool:
        """Whether this machine has these bytes, so that a rank on it should be the one to read them."""


class LocalFile:
    """A file of this machine. Read, not mapped: mapped pages would count as this process's memory."""

    tag = ""

    def __init__(self, path: Path) -> None:
        """Raises `ModelError` where there is none."""
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
                        raise ModelError(f"{self.path}: ends at byte {file.tell()}", hint="copy it again")
                # A change shows in its time, but only after the bytes that it has changed.
                if _identity(os.fstat(file.fileno())) != self._identity:
                    raise ModelError(f"{self.path}: changed while it was read", hint="try again when it is complete")
        except OSError as error:
            raise ModelError(f"{self.path}: {error.strerror}") from error

    def is_near(self, start: int, length: int) -> bool:  # noqa: ARG002 (all of it is)
        return True


class MemoryFile:
    """Tensors that had to be loaded whole, as a file that holds one after the other."""

    tag = ""

    def __init__(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.name = name
        self._tensors = tensors
        self.starts = [0, *accumulate(tensor.numel() * tensor.element_size() for tensor in tensors)]
        """Of each tensor, and where the last one ends."""
        self.size = self.starts[-1]

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        number = bisect_right(self.starts, start) - 1
        for buffer in buffers:
            filled = 0
            while filled < len(buffer):
                content = tensor_bytes(self._tensors[number])[start - self.starts[number] :][: len(buffer) - filled]
                buffer[filled : filled + len(content)] = content
                filled, start = filled + len(content), start + len(content)
                number += start == self.starts[number + 1]

    def is_near(self, start: int, length: int) -> bool:  # noqa: ARG002 (all of it is)
        return True


class RangeReader(io.RawIOBase):
    """A `WeightFile` as a file object, for libraries that want one (behind an `io.BufferedReader`)."""

    def __init__(self, file: WeightFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self.known: dict[int, bytes] = {}
        """Bytes that were read in advance, by their start."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        return self._position

    def tell(self) -> int:
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
    """A short range, as bytes."""
    data = bytearray(length)
    file.read_into(start, [memoryview(data)])
    return bytes(data)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in the order of its elements; its own memory where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
