"""Encoded examples as flat columns: the form in which shards store them and `collate` reads them.

Shape suffixes: N tokens, E examples, S samples, R entries of segment relation tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.encoder import ARRAYS, Encoded

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """Encoded examples, concatenated.

    An example consists of one or more *samples*: the example itself, then its in-context samples. Each sample has its
    own segments and a square table of their relations (`sample_segments` squared entries, row-major).
    """

    input_ids: Int32
    """(N,)"""
    input_id_subs: Int32
    """(N,)"""
    context: NDArray[np.int8]
    """(N,) 1 where the token is given, 0 where the model predicts it"""
    segment_ids: Int32
    """(N,) index of the segment in its sample"""
    segment_rel: NDArray[np.uint8]
    """(R,) relation buckets of all samples"""
    sample_lengths: Int32
    """(S,) tokens per sample; they sum to N"""
    sample_segments: Int32
    """(S,) segments per sample"""
    sample_counts: Int32
    """(E,) samples per example; they sum to S"""
    rows: Int32
    """(E,) index of each example's packed row, from 0, ascending"""

    @classmethod
    def of(
        cls,
        samples: Sequence[Encoded],
        rows: NDArray[np.integer] | None = None,
        sample_counts: NDArray[np.integer] | None = None,
    ) -> Self:
        """Concatenate samples. `sample_counts` (E,) defaults to one sample per example, `rows` (E,) to one example per
        packed row.
        """
        if not samples:
            raise ValueError("no examples")
        counts = np.ones(len(samples), dtype=np.int32) if sample_counts is None else sample_counts
        columns = {
            name: np.concatenate([getattr(sample, name) for sample in samples]).astype(dtype, copy=False)
            for name, dtype in ARRAYS.items()
        }
        return cls(
            **columns,
            sample_lengths=np.array([sample.num_tokens for sample in samples], dtype=np.int32),
            sample_segments=np.array([sample.num_segments for sample in samples], dtype=np.int32),
            sample_counts=np.asarray(counts, dtype=np.int32),
            rows=np.arange(len(counts), dtype=np.int32) if rows is None else np.asarray(rows, dtype=np.int32),
        )
