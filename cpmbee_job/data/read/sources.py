"""Where examples come from: a data URL becomes a fixed list of pieces, and a piece a stream of records.

A data URL names a file of JSON lines (`.jsonl`, `.json`, `.txt`, or no suffix; also with `.gz` or `.zst`) or a Parquet
file, a folder of such files, a folder that `preprocess` wrote, or one in the original code's binary format. The cut
into pieces depends on the listing alone, never on the number of workers: pieces are what the work is shared by.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

from cpmbee_job.data.dataset.index import INDEX
from cpmbee_job.data.dataset.original import META, read_original
from cpmbee_job.data.dataset.shards import read_examples, read_index
from cpmbee_job.data.encode.examples import Example, check_example, parse_object
from cpmbee_job.data.read.parquet import SUFFIX, read_rows
from cpmbee_job.data.read.reformat import Converter, converter
from cpmbee_job.data.read.streams import COMPRESSED_SUFFIXES, count_lines, is_compressed, open_slice
from cpmbee_job.errors import DataError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Progress, Store, listing_digest, no_progress
from cpmbee_job.store.urls import list_objects

MIN_PIECE_BYTES = 1 << 20
"""Small enough to share out a few megabytes; of rows of 2048 tokens, a piece has some two hundred."""

MAX_PIECES = 4096
"""Inputs that would make more get larger pieces."""

MAX_LINE_BYTES = 64 << 20

_PLAIN_SUFFIXES = ("", ".jsonl", ".json", ".ndjson", ".txt")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Kind = Literal["raw", "examples", "original"]
"""`raw`: files of rows, which a format converts; the others hold examples."""


@dataclass(frozen=True)
class Slice:
    """The lines that start in the bytes `start` to `end` of an object, or the row groups whose middle lies there; of
    an object that can't be cut, everything.
    """

    object: ObjectInfo
    start: int
    end: int


@dataclass(frozen=True)
class Piece:
    """What becomes one part."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.end - part.start for part in self.slices)


@dataclass(frozen=True)
class Source:
    """A data URL, listed and cut."""

    url: str
    store: Store
    kind: Kind
    listing: tuple[ObjectInfo, ...]
    """What is read, sorted by key. For a folder that `preprocess` wrote the tags are the parts' hashes."""
    ignored: tuple[str, ...]
    """Keys that do not look like data."""
    piece_bytes: int
    """Most bytes of a piece, but for objects that can't be cut."""
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def digest(self) -> str:
        return listing_digest(self.listing)


LineCounts = dict[tuple[str, int], int]
"""How many lines end before a place (key, byte), as far as is known."""


class _OpenSlice:
    """A slice that is being read. The lines before it, unless they are known, are counted when the first place in it is
    asked for.
    """

    def __init__(self, store: Store, part: Slice, known_lines: int | None) -> None:
        self._store, self._slice, self._known_lines = store, part, known_lines

    @cached_property
    def lines_before(self) -> int:
        if self._known_lines is not None:
            return self._known_lines
        return count_lines(self._store, self._slice.object.key, self._slice.start)

    @property
    def name(self) -> str:
        return _name(self._store, self._slice.object.key)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands; its text is `file:line`."""

    part: _OpenSlice
    line: int

    def __str__(self) -> str:
        return f"{self.part.name}:{self.part.lines_before + self.line}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record is no example: a word to count it by, and the reason."""

    kind: Literal["unreadable", "wrong format", "no example", "not encodable", "too long"]
    error: DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the input: an example, or why it is none."""

    place: Place | str
    content: "Example | Rejection"

    @property
    def location(self) -> str:
        return str(self.place)


def open_source(url: str, storage: StorageSpec | None = None, *, piece_bytes: int | None = None) -> Source:
    """List and cut what `url` names. Raises `NotFoundError`, or `DataError` where there is no data."""
    store, objects = list_objects(url, storage)
    kind, listing = _recognise(url, store, objects)
    if not listing:
        names = ", ".join(info.key for info in objects[:3])
        known = ", ".join((*_PLAIN_SUFFIXES[1:], *COMPRESSED_SUFFIXES, SUFFIX))
        raise DataError(f"{url}: no data there, only {names}", hint=f"data lie in files named {known}")
    total = sum(info.size for info in listing)
    size = piece_bytes or max(MIN_PIECE_BYTES, 1 << (total // MAX_PIECES).bit_length())
    if kind == "original":
        groups = [tuple(Slice(info, 0, info.size) for info in listing)]
    else:
        groups = _group((part for info in listing for part in _cut(info, size, kind)), size)
    used = {info.key for info in listing}
    return Source(
        url=url,
        store=store,
        kind=kind,
        listing=tuple(listing),
        ignored=tuple(info.key for info in objects if info.key not in used) if kind == "raw" else (),
        piece_bytes=size,
        pieces=tuple(Piece(number, group) for number, group in enumerate(groups)),
    )


def read_piece(
    store: Store,
    kind: Kind,
    piece: Piece,
    format_name: str,
    warnings: Counter[str],
    *,
    strict: bool = False,
    on_bytes: Progress = no_progress,
    line_counts: LineCounts | None = None,
) -> Iterator[Record]:
    """The records of a piece in order, converted from their format and checked.

    `store` and `kind` are its source's; a format is one of raw rows, the other kinds hold examples already. `warnings`
    counts what was mended. Who reads all pieces in order gives them the same `line_counts`: then naming a line reads
    nothing twice. Raises `DataError` for an object that can't be read on.
    """
    if kind == "original":
        for location, content in read_original(store):
            yield Record(location, _checked(content, warnings, strict))
        on_bytes(piece.num_bytes)
        return
    if kind == "examples":
        for part in piece.slices:
            info = part.object
            for number, text in enumerate(read_examples(store, info.key, info.size, sha256=info.etag), start=1):
                yield Record(f"{_name(store, info.key)}:{number}", _checked(json.loads(text), warnings, strict))
            on_bytes(info.size)
        return
    convert = converter(format_name)
    for part in piece.slices:
        rows = (
            _parquet_rows(store, part)
            if _is_parquet(part.object.key)
            else _json_rows(store, part, on_bytes, {} if line_counts is None else line_counts)
        )
        for place, row in rows:
            yield Record(place, _example(row, convert, warnings, strict))
        if _is_parquet(part.object.key):
            on_bytes(part.end - part.start)
        _require_unchanged(store, part.object)


def read_source(
    url: str,
    storage: StorageSpec | None = None,
    format_name: str = "bee",
    warnings: Counter[str] | None = None,
    *,
    strict: bool = False,
    on_bytes: Progress = no_progress,
) -> Iterator[Record]:
    """All records of a data URL in order; see `read_piece`."""
    source = open_source(url, storage)
    counter = Counter() if warnings is None else warnings
    lines: LineCounts = {}
    for piece in source.pieces:
        yield from read_piece(
            source.store,
            source.kind,
            piece,
            format_name,
            counter,
            strict=strict,
            on_bytes=on_bytes,
            line_counts=lines,
        )


def _recognise(url: str, store: Store, objects: list[ObjectInfo]) -> tuple[Kind, list[ObjectInfo]]:
    by_key = {info.key: info for info in objects}
    special = [info.key for info in objects if info.key.endswith(".arrow") or info.key.rpartition("/")[2] == META]
    if not special:
        return "raw", [info for info in objects if _is_lines(info.key) or _is_parquet(info.key)]
    if META in by_key:
        return "original", [info for info in objects if "/" not in info.key]
    if INDEX not in by_key:
        folders = sorted({key.rpartition("/")[0] for key in special})
        hint = "prepare it to its end" if "" in folders else f"name one of them: {', '.join(folders)}"
        raise DataError(f"{url}: holds prepared data, but no {INDEX} of its own", hint=hint)
    index = read_index(store)
    if index.kind != "examples":
        raise DataError(f"{url}: already encoded and packed", hint="name the data that it was made from")
    return "examples", [ObjectInfo(part.key, part.size, part.sha256) for part in index.parts]


def _is_lines(key: str) -> bool:
    path = PurePosixPath(key.lower())
    return (PurePosixPath(path.stem) if is_compressed(key) else path).suffix in _PLAIN_SUFFIXES


def _is_parquet(key: str) -> bool:
    return key.lower().endswith(SUFFIX)


def _cut(info: ObjectInfo, size: int, kind: Kind) -> Iterator[Slice]:
    """Cut an object into equal slices of at most `size` bytes."""
    whole = kind != "raw" or is_compressed(info.key)
    count = 1 if whole else -(-info.size // size)
    for number in range(count if info.size else 0):
        yield Slice(info, number * info.size // count, (number + 1) * info.size // count)


def _group(slices: Iterable[Slice], size: int) -> list[tuple[Slice, ...]]:
    """Put small slices together, so that thousands of small objects make no thousands of half-empty rows."""
    groups: list[list[Slice]] = []
    room = 0
    for part in slices:
        length = part.end - part.start
        if not groups or length > room:
            groups.append([])
            room = size
        groups[-1].append(part)
        room -= length
    return [tuple(group) for group in groups]


def _lines(
    store: Store, part: Slice, on_bytes: Progress, line_counts: LineCounts
) -> Iterator[tuple[Place, bytes | DataError]]:
    """The lines that start in a slice, without empty ones, numbered from the slice's start."""
    info = part.object
    known_lines = line_counts.pop((info.key, part.start), None) if part.start else 0
    place = _OpenSlice(store, part, known_lines)
    compressed = is_compressed(info.key)
    # Reading begins one byte early: only a line end there makes a line start where the slice does.
    begin = max(0, part.start - 1)
    with open_slice(store, info.key, info.size, begin, part.end, on_bytes) as stream:
        position = begin
        if part.start:
            position += _skip_line(stream)
        number = 1 if position == part.start else 2  # behind the end of the line that it begins in
        while compressed or position < part.end:
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            position += len(line)
            if len(line) > MAX_LINE_BYTES:
                if not line.endswith(b"\n"):
                    position += _skip_line(stream)
                yield Place(place, number), DataError(f"a line of more than {MAX_LINE_BYTES >> 20} MB")
            else:
                content = line.removeprefix(_BYTE_ORDER_MARK) if position == len(line) else line
                if content and not content.isspace():
                    yield Place(place, number), content
            number += 1
        if known_lines is not None:
            # A line that crosses the slice's end has been read, but ends behind it.
            line_counts[info.key, part.end] = known_lines + number - (1 if position == part.end else 2)


def _skip_line(stream: Any) -> int:
    """Read to the next line end; returns the bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _json_rows(
    store: Store, part: Slice, on_bytes: Progress, line_counts: LineCounts
) -> Iterator[tuple[Place, "dict[str, Any] | DataError"]]:
    for place, line in _lines(store, part, on_bytes, line_counts):
        try:
            yield place, line if isinstance(line, DataError) else parse_object(line)
        except DataError as error:
            yield place, error


def _parquet_rows(store: Store, part: Slice) -> Iterator[tuple[str, dict[str, Any]]]:
    info = part.object
    for number, row in read_rows(store, info.key, info.size, part.start, part.end):
        yield f"{_name(store, info.key)}: row {number}", row


def _require_unchanged(store: Store, info: ObjectInfo) -> None:
    """Raise where ranges of an object may be of two versions of it."""
    if store.local_path(info.key) is None and store.info(info.key) != info:
        raise DataError(
            f"{_name(store, info.key)}: changed while it was read",
            hint="start again when nobody writes to it any more",
        )


def _example(
    row: "dict[str, Any] | DataError", convert: Converter, warnings: Counter[str], strict: bool
) -> "Example | Rejection":
    if isinstance(row, DataError):
        return Rejection("unreadable", row)
    try:
        example = convert(row)
    except DataError as error:
        return Rejection("wrong format", error)
    return _checked(example, warnings, strict)


def _checked(raw: object, warnings: Counter[str], strict: bool) -> "Example | Rejection":
    try:
        return check_example(raw, warnings, strict=strict)
    except DataError as error:
        return Rejection("no example", error)


def _name(store: Store, key: str) -> str:
    return f"{store.url}/{key}".removeprefix("./")
