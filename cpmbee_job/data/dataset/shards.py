"""Shards of a prepared dataset: Arrow IPC files, with writers and readers side by side.

A shard of kind `rows` holds one Arrow record per example, sorted by packed row, with the columns of `_ROW_SCHEMA`; its
arrays are memory-mapped. A shard of kind `examples` holds examples as canonical JSON text. A shard made from a long
piece has several record batches, each packed independently.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpmbee_job.data.dataset.index import INDEX, Index
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import ARRAYS, Encoded
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.errors import DataError, NotFoundError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.store.base import Store, is_intact
from cpmbee_job.store.cache import kept, one_process
from cpmbee_job.store.files import translate_os_errors

_COLUMNS = {**ARRAYS, "sample_lengths": np.int32, "sample_segments": np.int32}
_ROW_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)), nullable=False)
            for name, dtype in _COLUMNS.items()
        ),
    ]
)
_EXAMPLE_SCHEMA = pa.schema([pa.field("example", pa.large_string(), nullable=False)])

_CONCURRENT_FETCHES = 8


class PackedWriter:
    """Writes a shard of kind `rows` to a local file."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _ROW_SCHEMA)
        self.num_rows = 0

    def write(self, table: Table) -> None:
        """Append a batch of examples; its rows are numbered after those already written."""
        sample_bounds = _bounds(table.sample_counts)
        token_bounds = _bounds(table.sample_lengths)[sample_bounds]
        bounds = dict.fromkeys(ARRAYS, token_bounds)
        bounds["segment_rel"] = _bounds(np.square(table.sample_segments.astype(np.int64)))[sample_bounds]
        bounds["sample_lengths"] = bounds["sample_segments"] = sample_bounds
        columns: list[pa.Array] = [_arrow(table.rows + np.int32(self.num_rows))]
        for field in list(_ROW_SCHEMA)[1:]:
            offsets, values = _arrow(bounds[field.name].astype(np.int32)), _arrow(getattr(table, field.name))
            columns.append(pa.ListArray.from_arrays(offsets, values, type=field.type))
        self._writer.write_batch(pa.record_batch(columns, schema=_ROW_SCHEMA))
        self.num_rows += int(table.rows[-1]) + 1

    def close(self) -> None:
        self._writer.close()


def _bounds(sizes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return where each of consecutive runs starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _arrow(values: NDArray[Any]) -> pa.Array:
    """Wrap an array without a copy. `pa.array` would import pandas if it is installed, which takes 0.3 s."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


class ExampleWriter:
    """Writes a shard of kind `examples` to a local file, `window` characters at a time."""

    num_rows = 0

    def __init__(self, path: Path, window: int) -> None:
        self.num_tokens = 0
        self._writer = pa.ipc.new_file(str(path), _EXAMPLE_SCHEMA)
        self._window = window
        self._texts: list[str] = []
        self._characters = 0

    def add(self, example: Example, encoded: Encoded | None) -> None:
        self.num_tokens += 0 if encoded is None else encoded.num_tokens
        self._texts.append(json.dumps(example, ensure_ascii=False, separators=(",", ":")))
        self._characters += len(self._texts[-1])
        if self._characters >= self._window:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._texts:
            texts = pa.array(self._texts, pa.large_string())
            self._writer.write_batch(pa.record_batch([texts], schema=_EXAMPLE_SCHEMA))
        self._texts, self._characters = [], 0


def read_index(store: Store) -> Index:
    """Read the index of a prepared dataset. Raises `DataError` if it is missing or of an unknown version."""
    name = f"{store.url}/{INDEX}"
    try:
        return Index.from_json(store.get(INDEX), name)
    except NotFoundError as error:
        raise DataError(f"{name}: missing", hint="the data is not prepared, or not completely") from error


def read_examples(store: Store, key: str, size: int, sha256: str) -> Iterator[str]:
    """Yield the JSON texts of a shard of kind `examples` after verifying its size and hash."""
    for batch in _read_batches(_local_shard(store, key, size, sha256)):
        for value in batch.column(0):
            yield value.as_py()


def _local_shard(store: Store, key: str, size: int, sha256: str, cache: Path | None = None) -> Path:
    """Return a verified shard's file on this machine: the store's own file, or one in `cache` (by default a per-user
    temporary folder) that is fetched once for all processes. Raises `DataError` for a wrong hash.
    """
    name, path = f"{store.url}/{key}", store.local_path(key)
    if path is not None:
        _verify(path, size, sha256, name)
        return path
    cache = cache or default_cache_dir() / "parts"
    path = cache / f"{sha256}.arrow"
    with translate_os_errors(cache):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_process(cache / f"{sha256}.lock"):
            if not path.exists():
                try:
                    with kept(store, key, path) as copy:
                        _verify(copy, size, sha256, name)
                except NotFoundError:
                    _verify(path, size, sha256, name)  # raises
    return path


def _verify(path: Path, size: int, sha256: str, name: str) -> None:
    hint = "delete the folder and prepare the data again"
    if not path.exists():
        raise DataError(f"{name}: missing, but listed in the index", hint=hint)
    if not is_intact(path, size, sha256):
        raise DataError(f"{name}: size or SHA-256 differs from the index", hint=hint)


def _read_batches(path: Path) -> list[pa.RecordBatch]:
    # The mapping outlives the file. The file is closed, so that thousands of shards hold no file descriptors.
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


@dataclass(frozen=True)
class _Block:
    """One record batch as arrays in the mapped file."""

    row_starts: NDArray[np.int64]
    """(B + 1,) first example of each packed row"""
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


class PackedDataset:
    """The packed rows of one or several prepared datasets, numbered from 0 across all shards."""

    def __init__(self, indexes: Sequence[Index], blocks: Iterable[_Block]) -> None:
        self.indexes = indexes
        self._blocks = list(blocks)
        self._first_rows = np.cumsum([0] + [block.num_rows for block in self._blocks])

    @classmethod
    def open(cls, *stores: Store, cache: Path | None = None) -> Self:
        """Open what `prepare` wrote, after verifying every shard. Raises `DataError`."""
        indexes = [read_index(store) for store in stores]
        for store, index in zip(stores, indexes, strict=True):
            if index.kind != "rows":
                raise DataError(f"{store.url}: examples that are not packed into rows yet", hint="prepare them")
        parts = [(store, part) for store, index in zip(stores, indexes, strict=True) for part in index.parts]
        with ThreadPoolExecutor(_CONCURRENT_FETCHES) as pool:
            paths = list(pool.map(lambda p: _local_shard(p[0], p[1].key, p[1].size, p[1].sha256, cache), parts))
        return cls(indexes, (_Block.of(batch) for path in paths for batch in _read_batches(path)))

    @property
    def num_rows(self) -> int:
        return sum(index.rows for index in self.indexes)

    @property
    def num_examples(self) -> int:
        return sum(index.examples for index in self.indexes)

    def table(self, rows: NDArray[np.integer]) -> Table:
        """Return the examples of packed rows (B,) in that order; the table numbers its rows from 0."""
        blocks = np.searchsorted(self._first_rows, rows, side="right") - 1
        own_rows = rows - self._first_rows[blocks]
        found = [(self._blocks[b], r) for b, r in zip(blocks.tolist(), own_rows.tolist(), strict=True)]
        counts = [block.sample_counts(row) for block, row in found]
        return Table(
            **{name: np.concatenate([block.column(name, row) for block, row in found]) for name in _COLUMNS},
            sample_counts=np.concatenate(counts),
            rows=np.repeat(np.arange(len(found), dtype=np.int32), [count.size for count in counts]),
        )
