"""Parts of a prepared data set: Arrow IPC files, their writers and their readers side by side.

A part of kind `rows` holds one record for each example, sorted by row, with the columns of `_ROW_SCHEMA`; its numbers
are read where they lie, mapped into memory. A part of kind `examples` holds examples as canonical JSON text. A part
made of a long piece has several record batches, each packed on its own.
"""

import fcntl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpmbee_job.data.dataset.collate import Table
from cpmbee_job.data.dataset.index import INDEX, Index
from cpmbee_job.errors import DataError, NotFoundError
from cpmbee_job.store.base import Store
from cpmbee_job.store.cache import default_cache_dir
from cpmbee_job.store.files import explained, sync
from cpmbee_job.store.verified import is_intact

_ROW_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.field("item", dtype, nullable=False)), nullable=False)
            for name, dtype in {
                "input_ids": pa.int32(),
                "input_id_subs": pa.int32(),
                "context": pa.int8(),
                "segment_ids": pa.int32(),
                "segment_rel": pa.uint8(),
                "sample_lengths": pa.int32(),
                "sample_segments": pa.int32(),
            }.items()
        ),
    ]
)
_EXAMPLE_SCHEMA = pa.schema([pa.field("example", pa.large_string(), nullable=False)])

_FETCHES = 8  # parts that are fetched or hashed at once


class RowWriter:
    """Writes a part of kind `rows` to a local file."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _ROW_SCHEMA)
        self.num_rows = 0

    def write(self, table: Table) -> None:
        """Add a batch of examples; its rows are numbered on from those already written."""
        rel_ends = np.cumsum(np.square(table.sample_segments.astype(np.int64)))
        token_ends = np.cumsum(table.sample_lengths, dtype=np.int64)
        sample_bounds = np.concatenate([[0], np.cumsum(table.sample_counts, dtype=np.int64)])
        token_bounds = np.concatenate([[0], token_ends])[sample_bounds]
        bounds = dict.fromkeys(("input_ids", "input_id_subs", "context", "segment_ids"), token_bounds)
        bounds["segment_rel"] = np.concatenate([[0], rel_ends])[sample_bounds]
        bounds["sample_lengths"] = bounds["sample_segments"] = sample_bounds
        columns: list[pa.Array] = [_arrow(table.rows + np.int32(self.num_rows))]
        for field in list(_ROW_SCHEMA)[1:]:
            offsets, values = _arrow(bounds[field.name].astype(np.int32)), _arrow(getattr(table, field.name))
            columns.append(pa.ListArray.from_arrays(offsets, values, type=field.type))
        self._writer.write_batch(pa.record_batch(columns, schema=_ROW_SCHEMA))
        self.num_rows += int(table.rows[-1]) + 1

    def close(self) -> None:
        self._writer.close()


def _arrow(values: NDArray[Any]) -> pa.Array:
    """The same memory as an Arrow array; `pa.array` would import pandas, where there is one, for 0.3 s."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


class ExampleWriter:
    """Writes a part of kind `examples` to a local file."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _EXAMPLE_SCHEMA)

    def write(self, texts: Sequence[str]) -> None:
        """Add examples as JSON text."""
        self._writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=_EXAMPLE_SCHEMA))

    def close(self) -> None:
        self._writer.close()


def read_index(store: Store) -> Index:
    """The index of a prepared data set. Raises `DataError` where it is missing or of an unknown version."""
    place = f"{store.url}/{INDEX}"
    try:
        return Index.from_json(store.get(INDEX), place)
    except NotFoundError as error:
        raise DataError(f"{place} is missing", hint="the data is not prepared, or not to its end") from error


def read_examples(store: Store, key: str, size: int, sha256: str) -> Iterator[str]:
    """The JSON texts of a part of kind `examples`, its size and hash verified."""
    for batch in _read_batches(_local_part(store, key, size, sha256)):
        for value in batch.column(0):
            yield value.as_py()


def _local_part(store: Store, key: str, size: int, sha256: str, cache: Path | None = None) -> Path:
    """A part's file on this machine: the store's own, else one in `cache` (default: a folder of this user's below the
    temporary one), fetched once for all processes. Raises `DataError` for a wrong hash.
    """
    path = store.local_path(key)
    if path is not None:
        _verify(path, size, sha256, f"{store.url}/{key}")
        return path
    cache = cache or default_cache_dir() / "parts"
    path = cache / f"{sha256}.arrow"
    with explained(cache):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (cache / f"{sha256}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                fetched = path.with_suffix(".fetched")
                with suppress(NotFoundError):
                    store.download(key, fetched)
                _verify(fetched, size, sha256, f"{store.url}/{key}")
                sync(fetched)  # it will not be hashed again, after a power failure neither
                fetched.replace(path)
    return path


def _verify(path: Path, size: int, sha256: str, place: str) -> None:
    if not path.exists():
        raise DataError(f"{place}: missing, but its index names it", hint="delete the folder and prepare it again")
    if not is_intact(path, size, sha256):
        raise DataError(f"{place}: not the bytes that its index names", hint="delete the folder and prepare it again")


def _read_batches(path: Path) -> list[pa.RecordBatch]:
    # The mapping outlives the file, which is closed so that thousands of parts take no descriptors.
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


@dataclass(frozen=True)
class _Block:
    """One record batch as arrays into the mapped file."""

    row_starts: NDArray[np.int64]
    """(B + 1,) first example of each row"""
    values: Mapping[str, NDArray[Any]]
    bounds: Mapping[str, NDArray[np.int32]]
    """(E + 1,) for each column: where each example's values start"""

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Self:
        rows = batch.column("row").to_numpy()
        values, bounds = {}, {}
        for name in batch.schema.names[1:]:
            column = batch.column(name)
            values[name] = column.values.to_numpy(zero_copy_only=True)
            bounds[name] = column.offsets.to_numpy(zero_copy_only=True)
        starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
        return cls(np.append(starts, rows.size), values, bounds)

    @property
    def num_rows(self) -> int:
        return self.row_starts.size - 1

    def column(self, name: str, row: int) -> NDArray[Any]:
        first, last = self.row_starts[row], self.row_starts[row + 1]
        bounds = self.bounds[name]
        return self.values[name][bounds[first] : bounds[last]]

    def sample_counts(self, row: int) -> NDArray[np.int32]:
        first, last = self.row_starts[row], self.row_starts[row + 1]
        return np.diff(self.bounds["sample_lengths"][first : last + 1])


class RowDataset:
    """All rows of one or several prepared data sets, numbered from 0 over their parts."""

    def __init__(self, indexes: Sequence[Index], blocks: Iterable[_Block]) -> None:
        self.indexes = indexes
        self._blocks = list(blocks)
        self._first_rows = np.cumsum([0] + [block.num_rows for block in self._blocks])

    @classmethod
    def open(cls, *stores: Store, cache: Path | None = None) -> Self:
        """Open what `prepare` wrote; every part is verified first. Raises `DataError`."""
        indexes = [read_index(store) for store in stores]
        for store, index in zip(stores, indexes, strict=True):
            if index.kind != "rows":
                raise DataError(f"{store.url}: examples that are not packed into rows yet", hint="prepare them")
        parts = [(store, part) for store, index in zip(stores, indexes, strict=True) for part in index.parts]
        with ThreadPoolExecutor(_FETCHES) as pool:
            paths = list(pool.map(lambda p: _local_part(p[0], p[1].key, p[1].size, p[1].sha256, cache), parts))
        return cls(indexes, (_Block.of(batch) for path in paths for batch in _read_batches(path)))

    @property
    def num_rows(self) -> int:
        return sum(index.rows for index in self.indexes)

    @property
    def num_examples(self) -> int:
        return sum(index.examples for index in self.indexes)

    def table(self, rows: NDArray[np.integer]) -> Table:
        """The examples of rows (B,), in that order, row 0 of the table being the first of them."""
        places = self._places(rows)
        columns = {name: [block.column(name, row) for block, row in places] for name in _ROW_SCHEMA.names[1:]}
        counts = [block.sample_counts(row) for block, row in places]
        return Table(
            **{name: np.concatenate(parts) for name, parts in columns.items()},
            sample_counts=np.concatenate(counts),
            rows=np.repeat(np.arange(len(places), dtype=np.int32), [count.size for count in counts]),
        )

    def _places(self, rows: NDArray[np.integer]) -> list[tuple[_Block, int]]:
        blocks = np.searchsorted(self._first_rows, rows, side="right") - 1
        own_rows = rows - self._first_rows[blocks]
        return [(self._blocks[b], r) for b, r in zip(blocks.tolist(), own_rows.tolist(), strict=True)]
