"""Collate packed examples into the model's input: the tokens of all examples, concatenated without padding.

Shape suffixes: N tokens, E examples, R entries of segment relation tables, T targets, X extra columns (classes beyond
the vocabulary), B packed rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.dataset.table import Int32, Table
from cpmbee_job.data.encode.encoder import Encoded

_PLACEHOLDER = 1


@dataclass(frozen=True)
class ExtraColumns:
    """The classes beyond the vocabulary: tokens that share an id and differ in their sub number.

    An example's classes are the vocabulary and its own extra columns, so its loss does not depend on the other examples
    of the batch. (In the original all columns of a batch compete.) An example without extra columns gets the
    placeholder (0, 1), as an example alone in its batch does in the original.
    """

    ids: Int32
    """(X,) token ids, sorted together with `subs`"""
    subs: Int32
    """(X,) sub numbers"""
    own: NDArray[np.bool_]
    """(E, X) whether a column is the example's own"""

    @classmethod
    def of(cls, table: Table, examples: NDArray[np.integer]) -> Self:
        """Find the extra columns of a table; `examples` (N,) holds each token's example."""
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
        """Return the column of each pair; every pair must have one."""
        return np.searchsorted(_keys(self.ids, self.subs), _keys(input_ids, input_id_subs))


def _keys(ids: NDArray[np.integer], subs: NDArray[np.integer]) -> NDArray[np.int64]:
    return (ids.astype(np.int64) << 32) | subs.astype(np.int64)


@dataclass(frozen=True)
class Collated:
    """The input of one forward pass: the arguments of `model.inputs.ModelInputs.from_numpy`."""

    ids: Int32
    """(N,) token ids"""
    subs: Int32
    """(N,) sub numbers"""
    positions: Int32
    """(N,) position in the token's example"""
    context: NDArray[np.bool_]
    """(N,) True where the token is given"""
    segments: Int32
    """(N,) index of the segment in its sample"""
    samples: Int32
    """(N,) index of the sample in its example; 0 is the example itself"""
    num_segments: Int32
    """(N,) number of segments of the token's sample"""
    rel_offset: Int32
    """(N,) start of the sample's relation table in `segment_rel`"""
    segment_rel: Int32
    """(R,) relation buckets"""
    lengths: Int32
    """(E,) tokens per example"""
    target_positions: Int32
    """(T,) positions whose next token the model predicts, ascending"""
    targets: Int32
    """(T,) class of the next token: its id, or the vocabulary size plus its extra column"""
    ext_ids: Int32
    """(X,) token ids of the extra columns"""
    ext_subs: Int32
    """(X,) sub numbers of the extra columns"""
    columns: NDArray[np.bool_]
    """(T, X) True for the extra columns of the target's example, which are classes for it"""
    rows: Int32
    """(E,) index of each example's packed row, from 0"""


def collate(
    table: Table, vocab_size: int, bos_id: int, eos_id: int, weights: NDArray[np.bool_] | None = None
) -> Collated:
    """Collate `table` for one forward pass. Packed rows whose weight (B,) is False get no targets."""
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
    """Return the classes (T,): the next token, or `</s>` where the next token starts a segment or is missing."""
    following = np.minimum(target_positions + 1, table.input_ids.size - 1)
    ids, subs = table.input_ids[following], table.input_id_subs[following]
    targets = ids.astype(np.int32)
    has_sub = subs > 0
    targets[has_sub] = vocab_size + extra.find(ids[has_sub], subs[has_sub])
    ends = (ids == bos_id) | (positions[following] == 0) | (following == target_positions)
    targets[ends] = eos_id
    return targets


def collate_examples(examples: Sequence[Encoded], vocab_size: int, bos_id: int, eos_id: int) -> Collated:
    """Collate examples that are not packed, each in its own row."""
    return collate(Table.of(examples), vocab_size, bos_id, eos_id)
