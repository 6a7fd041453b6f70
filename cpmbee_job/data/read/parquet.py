"""Rows of Parquet files, a row group at a time."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpmbee_job.data.read.streams import open_object
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Store

SUFFIX = ".parquet"

_BUFFER_BYTES = 1 << 20  # of each column, so that no row group has to fit into memory
_BATCH_ROWS = 256


def read_rows(store: Store, key: str, size: int, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows, with their numbers in the file from 1, of the row groups whose middle lies in the bytes `start` to
    `end`. A null is a key that is not there.

    Raises `DataError` for what is no whole Parquet file.
    """
    place = f"{store.url}/{key}"
    with open_object(store, key, size) as raw, _explained(place):
        file = pq.ParquetFile(io.BufferedReader(raw, _BUFFER_BYTES), buffer_size=_BUFFER_BYTES, pre_buffer=False)
        names = file.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{place}: two columns are called {min(twice)!r}", hint="rename one of them")
        number = 0
        for group in range(file.num_row_groups):
            if start <= _middle(file.metadata.row_group(group)) < end:
                rows = number
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    for row in batch.to_pylist(maps_as_pydicts="strict"):
                        rows += 1
                        yield rows, _without_nulls(row)
            number += file.metadata.row_group(group).num_rows


def _middle(group: Any) -> int:
    """The byte in the middle of a row group's columns."""
    columns = [group.column(number) for number in range(group.num_columns)]
    start = min(c.data_page_offset if c.dictionary_page_offset is None else c.dictionary_page_offset for c in columns)
    return int(start + sum(column.total_compressed_size for column in columns) // 2)


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(member) for key, member in value.items() if member is not None}


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())
        raise DataError(
            f"{place}: not a whole Parquet file: {words}", hint="copy it again, or write it anew"
        ) from error
