"""Digest of an evaluation set. Scores are comparable if their digests are equal."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.encoder import ARRAYS
from cpmbee_job.process import activity

_ROWS_PER_READ = 1024


class EvalDigest:
    """Digest of a set of examples as the model reads them.

    Order, packing and the split into files do not count. Truncation, the vocabulary and the key order of a nested
    answer do: they change what the model reads.
    """

    def __init__(self) -> None:
        self._examples = self._sum = 0

    def add(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Add one example, `Encoded.arrays`."""
        own = hashlib.blake2b(digest_size=16)
        for array in arrays:
            data = np.ascontiguousarray(array, dtype="<i4")
            own.update(data.size.to_bytes(8, "little") + data.tobytes())
        self._examples += 1
        self._sum = (self._sum + int.from_bytes(own.digest(), "little")) % (1 << 128)

    def hexdigest(self) -> str:
        """Return 16 hex digits."""
        whole = self._examples.to_bytes(8, "little") + self._sum.to_bytes(16, "little")
        return hashlib.sha256(whole).hexdigest()[:16]


def dataset_digest(dataset: PackedDataset) -> str:
    """Return the digest of all examples of a dataset without in-context samples, as evaluation sets are."""
    digest = EvalDigest()
    for first in range(0, dataset.num_rows, _ROWS_PER_READ):
        table = dataset.table(np.arange(first, min(first + _ROWS_PER_READ, dataset.num_rows)))
        token_ends = np.cumsum(table.sample_lengths, dtype=np.int64)[:-1]
        relation_ends = np.cumsum(table.sample_segments.astype(np.int64) ** 2)[:-1]
        columns = [
            np.split(getattr(table, name), relation_ends if name == "segment_rel" else token_ends) for name in ARRAYS
        ]
        for arrays in zip(*columns, strict=True):
            digest.add(arrays)
        activity.record()
    return digest.hexdigest()
