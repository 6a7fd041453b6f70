"""Read weights in pieces: contiguous byte ranges, each read at once by one rank.

A tensor's checksums are those of its chunks, counted from the tensor's first byte. So they do not depend on the file,
the pieces, or the rank that read them.
"""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import attrgetter

import torch
from torch import Tensor

from cpmbee_job.model.weights.tensor_table import StoredTensor
from cpmbee_job.model.weights.weight_file import WeightFile, tensor_bytes
from cpmbee_job.process import activity

CHUNK = 1 << 20
"""Bytes per checksum; part of the definition of `digest`."""
LARGEST_PIECE = 32 * CHUNK
READERS = 8
"""Threads. An object store needs that many for full speed, a disk fewer."""
_ALIGNMENT = 16
_LARGEST_GAP = 4096
"""Bytes between two tensors that are read and dropped instead of starting another read."""


@dataclass(frozen=True)
class Part:
    """`nbytes` bytes of a tensor from byte `begin`, the start of a chunk."""

    tensor: StoredTensor
    begin: int
    nbytes: int

    def of(self, elements: Tensor) -> Tensor:
        """Return this part of the tensor's elements (flat, any dtype)."""
        itemsize = self.tensor.dtype.itemsize
        return elements[self.begin // itemsize : (self.begin + self.nbytes) // itemsize]


@dataclass(frozen=True)
class PartSums:
    """CRC-32 of the chunks of a part, from the tensor's chunk number `first`."""

    name: str
    first: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class WeightPiece:
    file: WeightFile
    start: int
    nbytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ReadPiece:
    """A piece that has been read."""

    piece: WeightPiece
    contents: tuple[tuple[Part, Tensor], ...]
    """Each part and its elements (flat, the file's dtype). Elements without a final tensor are valid until the next
    piece is requested."""
    sums: tuple[PartSums, ...]
    scratch: Tensor


def cut(tensors: Iterable[StoredTensor]) -> list[WeightPiece]:
    """Split the tensors' bytes, file by file, into pieces of at most 32 MiB and 1/64 of the total (at least 1 MiB), so
    that buffers stay small compared to the model."""
    tensors = list(tensors)
    order = {file: number for number, file in enumerate(dict.fromkeys(id(tensor.file) for tensor in tensors))}
    in_order = sorted(tensors, key=lambda tensor: (order[id(tensor.file)], tensor.start, tensor.nbytes))
    limit = min(max(sum(tensor.nbytes for tensor in in_order) // 64, CHUNK), LARGEST_PIECE)
    pieces: list[WeightPiece] = []
    parts: list[Part] = []
    start = end = 0

    def close() -> None:
        if parts:
            pieces.append(WeightPiece(parts[0].tensor.file, start, end - start, tuple(parts)))
            parts.clear()

    for tensor in in_order:
        for begin in range(0, tensor.nbytes, CHUNK):
            nbytes = min(CHUNK, tensor.nbytes - begin)
            first = tensor.start + begin
            together = parts and parts[-1].tensor.file is tensor.file and 0 <= first - end <= _LARGEST_GAP
            if not together or first + nbytes - start > limit:
                close()
                start = first
            if parts and parts[-1].tensor is tensor:
                parts[-1] = Part(tensor, parts[-1].begin, parts[-1].nbytes + nbytes)
            else:
                parts.append(Part(tensor, begin, nbytes))
            end = first + nbytes
    close()
    return pieces


def share_out(pieces: Sequence[WeightPiece], near: Sequence[Sequence[bool]]) -> list[int]:
    """Assign a rank to each piece, equally on all ranks: one whose machine has the piece if possible, and of those the
    one with the least to read. `near[rank][i]`: whether the rank's machine has piece i."""
    loads = [0] * len(near)
    owners = []
    for number, piece in enumerate(pieces):
        candidates = [rank for rank, has in enumerate(near) if has[number]] or range(len(near))
        owner = min(candidates, key=loads.__getitem__)
        loads[owner] += piece.nbytes
        owners.append(owner)
    return owners


def read_pieces(
    pieces: Sequence[WeightPiece], place: Callable[[Part], Tensor | None] = lambda _part: None
) -> Iterator[ReadPiece]:
    """Read pieces in order, `READERS` at a time. `place` may return the flat tensor (on the CPU, the file's dtype) to
    read a part into; other parts are read into buffers that are reused."""
    waiting = iter(pieces)
    # Each part is aligned for any dtype.
    size = max((sum(_aligned(part.nbytes) for part in piece.parts) for piece in pieces), default=0)
    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
        running: deque[Future[ReadPiece]] = deque()

        def begin(piece: WeightPiece, scratch: Tensor) -> None:
            running.append(pool.submit(_read, piece, [place(part) for part in piece.parts], scratch))

        for piece in islice(waiting, READERS + 1):
            begin(piece, torch.empty(size, dtype=torch.uint8))
        while running:
            done = running.popleft().result()
            activity.record()
            yield done
            for piece in islice(waiting, 1):
                begin(piece, done.scratch)


def whole_sums(parts: Iterable[PartSums]) -> dict[str, tuple[int, ...]]:
    """Combine the checksums of all parts into those of whole tensors, by name."""
    in_order = sorted(parts, key=lambda part: (part.name, part.first))
    return {
        name: tuple(chain.from_iterable(part.values for part in group))
        for name, group in groupby(in_order, key=attrgetter("name"))
    }


def digest(tensors: Mapping[str, StoredTensor], parts: Iterable[PartSums]) -> str:
    """Digest (64 hex digits) of names, dtypes, shapes and content of all tensors, given the checksums of all parts."""
    sums, whole = whole_sums(parts), hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = " ".join(f"{value:08x}" for value in sums.get(name, ()))
        whole.update(f"{name} {tensor.dtype} {tensor.shape} {values}\n".encode())
    return whole.hexdigest()


def _read(piece: WeightPiece, places: Sequence[Tensor | None], scratch: Tensor) -> ReadPiece:
    contents, sums, buffers = [], [], []
    position, used = piece.start, 0
    for part, place in zip(piece.parts, places, strict=True):
        start = part.tensor.start + part.begin
        if start > position:
            buffers.append(memoryview(bytearray(start - position)))
        if place is None:
            place = scratch[used : used + part.nbytes].view(part.tensor.dtype)
            used += _aligned(part.nbytes)
        contents.append((part, place))
        buffers.append(tensor_bytes(place))
        position = start + part.nbytes
    piece.file.read_into(piece.start, buffers)
    for part, content in contents:
        data = tensor_bytes(content)
        values = tuple(zlib.crc32(data[at : at + CHUNK]) for at in range(0, part.nbytes, CHUNK))
        sums.append(PartSums(part.tensor.name, part.begin // CHUNK, values))
    return ReadPiece(piece, tuple(contents), tuple(sums), scratch)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
