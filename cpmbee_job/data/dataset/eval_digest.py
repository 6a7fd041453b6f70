"""What a score was measured on, as a digest: two scores can be compared where theirs is the same."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.dataset.shards import RowDataset
from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.process import activity

_ROWS = 1024
"""Rows of a data set that are looked at together."""


class EvalDigest:
    """Of a set of examples as the model reads them: neither their order counts, nor which share a row, nor in which
    files they came. Other truncation, another vocabulary or another order of a nested answer make other examples."""

    def __init__(self) -> None:
        self._examples = self._sum = 0

    def add(self, arrays: Iterable[NDArray[Any]]) -> None:
        """One example: its `input_ids`, `input_id_subs`, `context`, `segment_ids` and `segment_rel`."""
        own = hashlib.blake2b(digest_size=16)
        for array in arrays:
            data = np.ascontiguousarray(array, dtype="<i4")
            own.update(data.size.to_bytes(8, "little") + data.tobytes())
        self._examples += 1
        self._sum = (self._sum + int.from_bytes(own.digest(), "little")) % (1 << 128)

    def hexdigest(self) -> str:
        """16 hex digits."""
        whole = self._examples.to_bytes(8, "little") + self._sum.to_bytes(16, "little")
        return hashlib.sha256(whole).hexdigest()[:16]


def encoded_arrays(example: Encoded) -> tuple[NDArray[Any], ...]:
    """What `EvalDigest.add` takes of an example."""
    return example.input_ids, example.input_id_subs, example.context, example.segment_ids, example.segment_rel


def dataset_digest(dataset: RowDataset) -> str:
    """Digest of all examples of prepared rows, each without in-context samples, as evaluation sets are."""
    digest = EvalDigest()
    for first in range(0, dataset.num_rows, _ROWS):
        table = dataset.table(np.arange(first, min(first + _ROWS, dataset.num_rows)))
        tokens = np.cumsum(table.sample_lengths, dtype=np.int64)[:-1]
        pairs = np.cumsum(table.sample_segments.astype(np.int64) ** 2)[:-1]
        columns = [np.split(column, tokens) for column in (table.input_ids, table.input_id_subs)]
        columns += [np.split(column, tokens) for column in (table.context, table.segment_ids)]
        columns.append(np.split(table.segment_rel, pairs))
        for arrays in zip(*columns, strict=True):
            digest.add(arrays)
        activity.moved()
    return digest.hexdigest()
