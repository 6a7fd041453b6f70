"""Read records from Parquet files, one row group at a time."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpmbee_job.data.read.sources import SourceSlice
from cpmbee_job.data.read.streams import ObjectStream, object_name
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Store

_BUFFER_BYTES = 1 << 20  # per column, so that a row group need not fit into memory
_BATCH_ROWS = 256


def read_parquet(store: Store, part: SourceSlice) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of the row groups in a slice, with their numbers in the file from 1. Nulls become missing keys.

    Raises `DataError` for an invalid Parquet file.
    """
    info = part.object
    name = object_name(store, info.key)
    with ObjectStream(store, info.key, info.size, 0, info.size) as raw, _explained(name):
        file = pq.ParquetFile(io.BufferedReader(raw, _BUFFER_BYTES), buffer_size=_BUFFER_BYTES, pre_buffer=False)
        columns = file.schema_arrow.names
        if repeated := {column for column in columns if columns.count(column) > 1}:
            raise DataError(f"{name}: two columns are named {min(repeated)!r}", hint="rename one of them")
        number = 0
        for group in range(file.num_row_groups):
            if part.start <= _middle(file.metadata.row_group(group)) < part.end:
                batches = file.iter_batches(_BATCH_ROWS, row_groups=[group])
                records = (record for batch in batches for record in batch.to_pylist(maps_as_pydicts="strict"))
                for record_number, record in enumerate(records, start=number + 1):
                    yield record_number, _without_nulls(record)
            number += file.metadata.row_group(group).num_rows


def _middle(group: Any) -> int:
    """Return the position of the middle byte of a row group's columns."""
    columns = [group.column(number) for number in range(group.num_columns)]
    start = min(c.data_page_offset if c.dictionary_page_offset is None else c.dictionary_page_offset for c in columns)
    return int(start + sum(column.total_compressed_size for column in columns) // 2)


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(member) for key, member in value.items() if member is not None}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: invalid Parquet file: {reason}", hint="copy or write the file again") from error
