"""Read the records of a data source, convert them from their format and validate them as examples."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cpmbee_job.data.dataset.original import read_original
from cpmbee_job.data.dataset.shards import read_examples
from cpmbee_job.data.encode.examples import Example, check_example, parse_object
from cpmbee_job.data.read.formats import Converter, converter
from cpmbee_job.data.read.lines import LineCounts, read_lines
from cpmbee_job.data.read.locations import Location, Origin
from cpmbee_job.data.read.parquet import read_parquet
from cpmbee_job.data.read.sources import SourceKind, SourcePiece, SourceSlice, is_parquet, open_source
from cpmbee_job.data.read.streams import object_name
from cpmbee_job.errors import DataError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Progress, Store, no_progress


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record can't be used: a kind under which it is counted, and the error."""

    kind: Literal["unreadable", "wrong format", "no example", "not encodable", "too long"]
    error: DataError


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One record of the input: an example, or why it is rejected."""

    location: Location
    content: "Example | Rejection"


@dataclass(frozen=True)
class Reader:
    """Reads the pieces of a data source; `store` and `kind` are the source's.

    `format` applies to raw records; the other kinds contain examples already. `strict` rejects what would be corrected.
    """

    store: Store
    kind: SourceKind
    format: str = "bee"
    strict: bool = False
    _line_counts: LineCounts = field(default_factory=dict, init=False)

    def read(
        self, piece: SourcePiece, warnings: Counter[str], on_bytes: Progress = no_progress
    ) -> Iterator[InputRecord]:
        """Yield the records of a piece in order. `warnings` counts automatic corrections.

        Raises `DataError` if an object can't be read any further.
        """
        convert = converter(self.format) if self.kind == "raw" else None
        found = self._original() if self.kind == "original" else self._sliced(piece, on_bytes)
        for location, raw in found:
            yield InputRecord(location, self._example(raw, convert, warnings))
        if self.kind == "original":
            on_bytes(piece.num_bytes)

    def _original(self) -> Iterator[tuple[Location, object]]:
        origin = Origin("")
        for block, number, content in read_original(self.store):
            if origin.prefix != (prefix := f"{block}, record "):
                origin = Origin(prefix)
            yield Location(origin, number), content

    def _sliced(self, piece: SourcePiece, on_bytes: Progress) -> Iterator[tuple[Location, object]]:
        for part in piece.slices:
            info = part.object
            name = object_name(self.store, info.key)
            if self.kind == "examples":
                origin = Origin(f"{name}:")
                texts = read_examples(self.store, info.key, info.size, sha256=info.etag)
                yield from ((Location(origin, n), json.loads(text)) for n, text in enumerate(texts, start=1))
                on_bytes(part.num_bytes)
            elif is_parquet(info.key):
                origin = Origin(f"{name}: record ")
                yield from ((Location(origin, n), record) for n, record in read_parquet(self.store, part))
                on_bytes(part.num_bytes)
            else:
                yield from self._json_lines(part, on_bytes)
            if self.kind == "raw":
                self._require_unchanged(part)

    def _json_lines(self, part: SourceSlice, on_bytes: Progress) -> Iterator[tuple[Location, object]]:
        for location, line in read_lines(self.store, part, on_bytes, self._line_counts):
            try:
                yield location, line if isinstance(line, DataError) else parse_object(line)
            except DataError as error:
                yield location, error

    def _require_unchanged(self, part: SourceSlice) -> None:
        """Raise `DataError` if ranges of an object may come from two versions of it."""
        info = part.object
        if self.store.local_path(info.key) is None and self.store.info(info.key) != info:
            raise DataError(
                f"{object_name(self.store, info.key)}: changed while it was read",
                hint="start again when no process writes to it",
            )

    def _example(self, raw: object, convert: Converter | None, warnings: Counter[str]) -> "Example | Rejection":
        if isinstance(raw, DataError):
            return Rejection("unreadable", raw)
        try:
            example = raw if convert is None else convert(raw)  # type: ignore[arg-type]  # raw records are dicts
        except DataError as error:
            return Rejection("wrong format", error)
        try:
            return check_example(example, warnings, strict=self.strict)
        except DataError as error:
            return Rejection("no example", error)


def read_source(
    url: str,
    storage: StorageSpec | None = None,
    format_name: str = "bee",
    warnings: Counter[str] | None = None,
    *,
    strict: bool = False,
    on_bytes: Progress = no_progress,
) -> Iterator[InputRecord]:
    """Yield all records of a data URL in order. See `Reader`."""
    source = open_source(url, storage)
    reader = Reader(source.store, source.kind, format_name, strict)
    counter = Counter() if warnings is None else warnings
    for piece in source.pieces:
        yield from reader.read(piece, counter, on_bytes)
