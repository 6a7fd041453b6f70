"""Examples to what the model takes: the flat tokens of all examples one after the other, without padding.

Shape suffixes: N tokens, E examples, S in-context samples, R entries of segment relation tables, T targets, X extra
columns (classes beyond the vocabulary), B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.encoder import Encoded

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
    def of(
        cls,
        samples: Sequence[Encoded],
        rows: NDArray[np.integer] | None = None,
        sample_counts: NDArray[np.integer] | None = None,
    ) -> Self:
        """Put examples one after the other. `sample_counts` (E,) says how many samples make an example, one by default;
        `rows` (E,), ascending, defaults to a row for each example.
        """
        if not samples:
            raise ValueError("no examples")
        counts = np.ones(len(samples), dtype=np.int32) if sample_counts is None else sample_counts
        return cls(
            input_ids=np.concatenate([s.input_ids for s in samples]).astype(np.int32, copy=False),
            input_id_subs=np.concatenate([s.input_id_subs for s in samples]).astype(np.int32, copy=False),
            context=np.concatenate([s.context for s in samples]).astype(np.int8, copy=False),
            segment_ids=np.concatenate([s.segment_ids for s in samples]).astype(np.int32, copy=False),
            segment_rel=np.concatenate([s.segment_rel for s in samples]).astype(np.uint8, copy=False),
            sample_lengths=np.array([len(s.input_ids) for s in samples], dtype=np.int32),
            sample_segments=np.array([s.num_segments for s in samples], dtype=np.int32),
            sample_counts=np.asarray(counts, dtype=np.int32),
            rows=np.arange(len(counts), dtype=np.int32) if rows is None else np.asarray(rows, dtype=np.int32),
        )


@dataclass(frozen=True)
class ExtraColumns:
    """The classes beyond the vocabulary: tokens that are told from others of the same id by their sub number.

    An example's classes are the vocabulary and its own extra columns, so that its loss does not depend on which other
    examples share its batch (the original lets all columns of a batch compete). One that has none gets the
    placeholder (0, 1), as in the original an example that is alone does.
    """

    ids: Int32
    """(X,) sorted, with `subs`"""
    subs: Int32
    """(X,)"""
    own: NDArray[np.bool_]
    """(E, X) the columns of each example"""

    @classmethod
    def of(cls, table: Table, examples: NDArray[np.integer]) -> Self:
        """The columns of a table whose tokens (N,) are of `examples`."""
        numbered = np.flatnonzero(table.input_id_subs)
        num_examples = table.rows.size
        without = np.setdiff1d(np.arange(num_examples), examples[numbered])
        keys = np.concatenate(
            [_keys(table.input_ids[numbered], table.input_id_subs[numbered]), np.full(without.size, _PLACEHOLDER)]
        )
        known, columns = np.unique(keys, return_inverse=True)
        own = np.zeros((num_examples, known.size), dtype=np.bool_)
        own[np.concatenate([examples[numbered], without]), columns] = True
        return cls((known >> 32).astype(np.int32), (known & 0xFFFFFFFF).astype(np.int32), own)

    def find(self, input_ids: Int32, input_id_subs: Int32) -> NDArray[np.int64]:
        """The column of each pair, which must have one."""
        return np.searchsorted(_keys(self.ids, self.subs), _keys(input_ids, input_id_subs))


_PLACEHOLDER = 1


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
    columns: NDArray[np.bool_]
    """(T, X) the extra columns that compete for each target: those of its example"""
    rows: Int32
    """(E,) row of each example, from 0"""


def collate(
    table: Table, vocab_size: int, bos_id: int, eos_id: int, weights: NDArray[np.bool_] | None = None
) -> Collated:
    """Make a forward pass of `table`. Rows whose weight (B,) is False keep no targets."""
    sample_starts = np.cumsum(table.sample_counts) - table.sample_counts  # (E,) in samples
    lengths = np.add.reduceat(table.sample_lengths, sample_starts)
    starts = np.cumsum(lengths) - lengths  # (E,) in tokens
    positions = np.arange(table.input_ids.size, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    rel_sizes = np.square(table.sample_segments.astype(np.int64))
    sample_numbers = np.arange(table.sample_lengths.size) - np.repeat(sample_starts, table.sample_counts)

    examples = np.repeat(np.arange(lengths.size), lengths)  # (N,)
    extra = ExtraColumns.of(table, examples)
    target_positions = np.flatnonzero(table.context == 0)
    if weights is not None and not weights.all():
        target_positions = target_positions[weights[table.rows[examples[target_positions]]]]
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
        columns=extra.own[examples[target_positions]],
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


def collate_examples(examples: Sequence[Encoded], vocab_size: int, bos_id: int, eos_id: int) -> Collated:
    """A forward pass of examples that were encoded on the fly, each in a row of its own."""
    return collate(Table.of(examples), vocab_size, bos_id, eos_id)
