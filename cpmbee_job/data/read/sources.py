"""List a data URL and divide its objects into pieces, the units of work.

A data URL names a file of JSON lines (`.jsonl`, `.json`, `.txt` or no suffix, optionally with `.gz` or `.zst`), a
Parquet file, a folder of such files, a folder that `preprocess` wrote, or one in the original code's binary format. The
pieces depend only on the listing, never on the number of workers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cpmbee_job.data.dataset.index import INDEX
from cpmbee_job.data.dataset.original import META
from cpmbee_job.data.dataset.shards import read_index
from cpmbee_job.data.read.streams import COMPRESSED_SUFFIXES, is_compressed
from cpmbee_job.errors import DataError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store, listing_digest
from cpmbee_job.store.urls import list_objects

MIN_PIECE_BYTES = 1 << 20
"""Small enough to spread a few megabytes over workers; a piece makes about 200 packed rows of 2048 tokens."""

MAX_PIECES = 4096
"""An input that would have more pieces gets larger ones."""

_PARQUET_SUFFIX = ".parquet"
_LINE_SUFFIXES = ("", ".jsonl", ".json", ".ndjson", ".txt")

SourceKind = Literal["raw", "examples", "original"]
"""`raw`: records in a format. `examples`: what `preprocess` wrote. `original`: the original code's format."""


@dataclass(frozen=True)
class SourceSlice:
    """The lines that start within the bytes `start` to `end` of an object, or the row groups whose middle lies there.

    An object that can't be divided has one slice.
    """

    object: ObjectInfo
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class SourcePiece:
    """The part of the input that becomes one shard."""

    number: int
    slices: tuple[SourceSlice, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.slices)


@dataclass(frozen=True)
class DataSource:
    """A data URL, listed and divided into pieces."""

    url: str
    store: Store
    kind: SourceKind
    listing: tuple[ObjectInfo, ...]
    """The objects to read, sorted by key. For `examples` their tags are the shards' hashes."""
    ignored: tuple[str, ...]
    """Keys that do not look like data."""
    piece_bytes: int
    """Maximum size of a piece, except for objects that can't be divided."""
    pieces: tuple[SourcePiece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def digest(self) -> str:
        return listing_digest(self.listing)


def open_source(url: str, storage: StorageSpec | None = None, *, piece_bytes: int | None = None) -> DataSource:
    """List a data URL and divide it. Raises `NotFoundError`, or `DataError` if it has no data."""
    store, objects = list_objects(url, storage)
    kind, listing = _detect(url, store, objects)
    if not listing:
        names = ", ".join(info.key for info in objects[:3])
        known = ", ".join((*_LINE_SUFFIXES[1:], *COMPRESSED_SUFFIXES, _PARQUET_SUFFIX))
        raise DataError(f"{url}: no data files, only {names}", hint=f"supported suffixes: {known}")
    total = sum(info.size for info in listing)
    size = piece_bytes or max(MIN_PIECE_BYTES, 1 << (total // MAX_PIECES).bit_length())
    if kind == "original":
        groups = [tuple(SourceSlice(info, 0, info.size) for info in listing)]
    else:
        groups = _group((part for info in listing for part in _divide(info, size, kind)), size)
    used = {info.key for info in listing}
    return DataSource(
        url=url,
        store=store,
        kind=kind,
        listing=tuple(listing),
        ignored=tuple(info.key for info in objects if info.key not in used) if kind == "raw" else (),
        piece_bytes=size,
        pieces=tuple(SourcePiece(number, group) for number, group in enumerate(groups)),
    )


def is_parquet(key: str) -> bool:
    return key.lower().endswith(_PARQUET_SUFFIX)


def _detect(url: str, store: Store, objects: list[ObjectInfo]) -> tuple[SourceKind, list[ObjectInfo]]:
    by_key = {info.key: info for info in objects}
    special = [info.key for info in objects if info.key.endswith(".arrow") or info.key.rpartition("/")[2] == META]
    if not special:
        return "raw", [info for info in objects if _has_lines(info.key) or is_parquet(info.key)]
    if META in by_key:
        return "original", [info for info in objects if "/" not in info.key]
    if INDEX not in by_key:
        folders = sorted({key.rpartition("/")[0] for key in special})
        hint = "complete its preparation" if "" in folders else f"choose one of its datasets: {', '.join(folders)}"
        raise DataError(f"{url}: contains prepared data, but no {INDEX}", hint=hint)
    index = read_index(store)
    if index.kind != "examples":
        raise DataError(f"{url}: already encoded and packed", hint="use the data that it was prepared from")
    return "examples", [ObjectInfo(part.key, part.size, part.sha256) for part in index.parts]


def _has_lines(key: str) -> bool:
    path = PurePosixPath(key.lower())
    return (PurePosixPath(path.stem) if is_compressed(key) else path).suffix in _LINE_SUFFIXES


def _divide(info: ObjectInfo, size: int, kind: SourceKind) -> Iterator[SourceSlice]:
    """Divide an object into equal slices of at most `size` bytes."""
    whole = kind != "raw" or is_compressed(info.key)
    count = 1 if whole else -(-info.size // size)
    for number in range(count if info.size else 0):
        yield SourceSlice(info, number * info.size // count, (number + 1) * info.size // count)


def _group(slices: Iterable[SourceSlice], size: int) -> list[tuple[SourceSlice, ...]]:
    """Combine small slices into pieces: thousands of small objects would make thousands of half-empty rows."""
    groups: list[list[SourceSlice]] = []
    room = 0
    for part in slices:
        if not groups or part.num_bytes > room:
            groups.append([])
            room = size
        groups[-1].append(part)
        room -= part.num_bytes
    return [tuple(group) for group in groups]
