"""Lines of text files in a store, with their locations."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import partial
from typing import IO

from cpmbee_job.data.read.locations import Location, Origin
from cpmbee_job.data.read.sources import SourceSlice
from cpmbee_job.data.read.streams import count_lines, is_compressed, object_name, open_slice
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Progress, Store

MAX_LINE_BYTES = 64 << 20

LineCounts = dict[tuple[str, int], int]
"""Number of lines that end before a position (key, byte), where it is known."""


def read_lines(
    store: Store, part: SourceSlice, on_bytes: Progress, line_counts: LineCounts
) -> Iterator[tuple[Location, bytes | DataError]]:
    """Yield the non-empty lines that start within a slice, and an error for each line that is too long.

    `line_counts` carries the number of lines from slice to slice: if all slices of an object are read in order, line
    numbers cost nothing. Otherwise the lines before the slice are counted when the first location is formatted.
    """
    info = part.object
    known = line_counts.pop((info.key, part.start), None) if part.start else 0
    count_before = partial(count_lines, store, info.key, part.start) if known is None else partial(int, known)
    origin = Origin(f"{object_name(store, info.key)}:", count_before)
    compressed = is_compressed(info.key)
    # Read from one byte earlier: only if it is a line end does a line start where the slice does.
    begin = max(0, part.start - 1)
    with open_slice(store, info.key, info.size, begin, part.end, on_bytes) as stream:
        position = begin
        if part.start:
            position += _skip_line(stream)
        number = 1 if position == part.start else 2  # the slice starts inside line 1
        while compressed or position < part.end:
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            position += len(line)
            if len(line) > MAX_LINE_BYTES:
                if not line.endswith(b"\n"):
                    position += _skip_line(stream)
                yield Location(origin, number), DataError(f"line is longer than {MAX_LINE_BYTES >> 20} MB")
            else:
                content = line.removeprefix(BOM_UTF8) if position == len(line) else line
                if content and not content.isspace():
                    yield Location(origin, number), content
            number += 1
        if known is not None:
            # A line that crosses the end of the slice has been read, but ends after it.
            line_counts[info.key, part.end] = known + number - (1 if position == part.end else 2)


def _skip_line(stream: IO[bytes]) -> int:
    """Read up to and including the next line end. Returns the number of bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped
