"""Examples to what the model takes: the flat tokens of all examples one after the other, without padding.

Shape suffixes: N tokens, E examples, S in-context samples, R entries of segment relation tables, T targets, X extra
columns (classes beyond the vocabulary), B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode import Encoded

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """Encoded examples, one after the other, in the form in which they are stored.

    An example is one or more *samples*: itself, then the in-context samples that it sees. Each sample has its own
    segments, and a square table of their relations (`sample_segments` squared entries, row by row).
    """

    input_ids: Int32
    """(N,)"""
    input_id_subs: Int32
    """(N,)"""
    context: NDArray[np.int8]
    """(N,) 1 where the token is given, 0 where it is to be predicted"""
    segment_ids: Int32
    """(N,) number of the segment in its sample"""
    segment_rel: NDArray[np.uint8]
    """(R,) relation buckets of all samples' tables"""
    sample_lengths: Int32
    """(S,) tokens; the sum is N"""
    sample_segments: Int32
    """(S,)"""
    sample_counts: Int32
    """(E,) samples of each example; the sum is S"""
    rows: Int32
    """(E,) the row of each example, from 0, ascending"""

    @classmethod
    def of(cls, examples: Sequence[Encoded], rows: NDArray[np.integer] | None = None) -> Self:
        """Put examples one after the other; `rows` (E,), ascending, defaults to a row for each."""
        if not examples:
            raise ValueError("no examples")
        return cls(
            input_ids=np.concatenate([e.input_ids for e in examples]).astype(np.int32, copy=False),
            input_id_subs=np.concatenate([e.input_id_subs for e in examples]).astype(np.int32, copy=False),
            context=np.concatenate([e.context for e in examples]).astype(np.int8, copy=False),
            segment_ids=np.concatenate([e.segment_ids for e in examples]).astype(np.int32, copy=False),
            segment_rel=np.concatenate([e.segment_rel for e in examples]).astype(np.uint8, copy=False),
            sample_lengths=np.array([len(e.input_ids) for e in examples], dtype=np.int32),
            sample_segments=np.array([e.num_segments for e in examples], dtype=np.int32),
            sample_counts=np.ones(len(examples), dtype=np.int32),
            rows=np.arange(len(examples), dtype=np.int32) if rows is None else np.asarray(rows, dtype=np.int32),
        )


@dataclass(frozen=True)
class ExtraColumns:
    """The classes beyond the vocabulary: tokens that are told from others of the same id by their sub number."""

    ids: Int32
    """(X,)"""
    subs: Int32
    """(X,)"""

    @classmethod
    def of(cls, input_ids: NDArray[np.integer], input_id_subs: NDArray[np.integer]) -> Self:
        """One column for each pair among the tokens (N,) with a sub number above 0, sorted; where there is none, the
        placeholder (0, 1), as in the original.
        """
        keys = np.unique(_keys(input_ids, input_id_subs)[input_id_subs > 0])
        if not keys.size:
            keys = np.array([1], dtype=np.int64)
        return cls((keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32))

    def find(self, input_ids: Int32, input_id_subs: Int32) -> NDArray[np.int64]:
        """The column of each pair."""
        known, wanted = _keys(self.ids, self.subs), _keys(input_ids, input_id_subs)
        columns = np.minimum(np.searchsorted(known, wanted), known.size - 1)
        if not np.array_equal(known[columns], wanted):
            raise ValueError("a token that needs an extra column has none")
        return columns


def _keys(ids: NDArray[np.integer], subs: NDArray[np.integer]) -> NDArray[np.int64]:
    return (ids.astype(np.int64) << 32) | subs.astype(np.int64)


@dataclass(frozen=True)
class Collated:
    """One forward pass: the arguments of `model.inputs.ModelInputs.from_numpy`."""

    ids: Int32
    """(N,) tokens"""
    subs: Int32
    """(N,) their sub numbers"""
    positions: Int32
    """(N,) position in the token's example"""
    context: NDArray[np.bool_]
    """(N,) whether the token is given"""
    segments: Int32
    """(N,) segment in the token's sample"""
    samples: Int32
    """(N,) in-context sample, 0 being the example itself"""
    num_segments: Int32
    """(N,) segments of the token's sample"""
    rel_offset: Int32
    """(N,) where the table of the token's sample starts in `segment_rel`"""
    segment_rel: Int32
    """(R,) relation buckets"""
    lengths: Int32
    """(E,) tokens of each example"""
    target_positions: Int32
    """(T,) tokens whose successor is to be predicted, ascending"""
    targets: Int32
    """(T,) class of the successor: a token id, or the vocabulary's size plus an extra column"""
    ext_ids: Int32
    """(X,) tokens of the extra columns"""
    ext_subs: Int32
    """(X,) their sub numbers"""
    rows: Int32
    """(E,) row of each example, from 0"""


def collate(
    table: Table,
    vocab_size: int,
    bos_id: int,
    eos_id: int,
    weights: NDArray[np.bool_] | None = None,
    extra: ExtraColumns | None = None,
) -> Collated:
    """Make a forward pass of `table`. Rows whose weight (B,) is False keep no targets.

    `extra` must hold every token of the table with a sub number; by default it holds those and no others, as in the
    original. Every column takes part in the softmax of every target, so for a loss that does not depend on how a
    step is cut into micro-batches give the columns of the whole step (`RowDataset.extra_columns`).
    """
    sample_starts = np.cumsum(table.sample_counts) - table.sample_counts  # (E,) in samples
    lengths = np.add.reduceat(table.sample_lengths, sample_starts)
    starts = np.cumsum(lengths) - lengths  # (E,) in tokens
    positions = np.arange(table.input_ids.size, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    rel_sizes = np.square(table.sample_segments.astype(np.int64))
    sample_numbers = np.arange(table.sample_lengths.size) - np.repeat(sample_starts, table.sample_counts)

    extra = extra or ExtraColumns.of(table.input_ids, table.input_id_subs)
    target_positions = np.flatnonzero(table.context == 0)
    if weights is not None and not weights.all():
        examples = np.searchsorted(starts, target_positions, side="right") - 1
        target_positions = target_positions[weights[table.rows[examples]]]
    return Collated(
        ids=table.input_ids,
        subs=table.input_id_subs,
        positions=positions,
        context=table.context != 0,
        segments=table.segment_ids,
        samples=np.repeat(sample_numbers.astype(np.int32), table.sample_lengths),
        num_segments=np.repeat(table.sample_segments, table.sample_lengths),
        rel_offset=np.repeat((np.cumsum(rel_sizes) - rel_sizes).astype(np.int32), table.sample_lengths),
        segment_rel=table.segment_rel.astype(np.int32),
        lengths=lengths.astype(np.int32, copy=False),
        target_positions=target_positions.astype(np.int32),
        targets=_targets(table, positions, target_positions, extra, vocab_size, bos_id, eos_id),
        ext_ids=extra.ids,
        ext_subs=extra.subs,
        rows=table.rows,
    )


def _targets(
    table: Table,
    positions: Int32,
    target_positions: NDArray[np.int64],
    extra: ExtraColumns,
    vocab_size: int,
    bos_id: int,
    eos_id: int,
) -> Int32:
    """Classes (T,): the next token; the end of the text where the next token opens a segment or there is none."""
    following = np.minimum(target_positions + 1, table.input_ids.size - 1)
    ids, subs = table.input_ids[following], table.input_id_subs[following]
    targets = ids.astype(np.int32)
    has_sub = subs > 0
    targets[has_sub] = vocab_size + extra.find(ids[has_sub], subs[has_sub])
    ends = (ids == bos_id) | (positions[following] == 0) | (following == target_positions)
    targets[ends] = eos_id
    return targets


def collate_examples(
    examples: Sequence[Encoded], vocab_size: int, bos_id: int, eos_id: int, extra: ExtraColumns | None = None
) -> Collated:
    """A forward pass of examples that were encoded on the fly, each in a row of its own."""
    return collate(Table.of(examples), vocab_size, bos_id, eos_id, extra=extra)
