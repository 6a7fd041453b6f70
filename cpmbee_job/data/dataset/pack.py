"""Pack examples into rows of a fixed maximum length."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.dataset.shards import PackedWriter
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.in_context import InContext, Samples


def pack(lengths: Sequence[int] | NDArray[np.integer], max_length: int) -> NDArray[np.int32]:
    """Assign each example to a packed row, so that no row holds more than `max_length` tokens.

    Takes lengths (E,) of 1..max_length tokens and returns rows (E,), numbered from 0 in the order in which they are
    filled. The result depends only on the lengths and their order.

    A row takes the largest example that fits while that is large (over a quarter of a row), then small examples in a
    shuffled order. As soon as one or two examples fill the rest exactly, it takes those. Best-fit decreasing would use
    up the long examples first and leave rows that the short ones, all of similar length, do not fill.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= sizes.min() <= sizes.max() <= max_length:
        raise ValueError(f"lengths from {sizes.min()} to {sizes.max()} do not fit rows of {max_length}")
    rest = _Unpacked(sizes, max_length)
    row = 0
    while rest.any():
        space = max_length
        while space:
            chosen = rest.exact(space)
            if not chosen and (length := rest.next(space)) is not None:
                chosen = (length,)
            if not chosen:
                break
            for length in chosen:
                rest.place(length, row)
            space -= sum(chosen)
        row += 1
    return rest.rows


class _Unpacked:
    """The examples without a row, by length.

    The set of their lengths is one large integer with a bit per length, so a query takes max_length / 64 machine words.
    """

    def __init__(self, sizes: NDArray[np.int64], max_length: int) -> None:
        self.rows = np.full(sizes.size, -1, dtype=np.int32)
        self._max_length = max_length
        self._small = max_length // 4
        self._sizes: list[int] = sizes.tolist()
        # Like `order`, this uses a random stream that is the same in every version of numpy.
        shuffled = np.argsort(np.random.Philox(0).random_raw(sizes.size), kind="stable").tolist()
        self._examples: list[list[int]] = [[] for _ in range(max_length + 1)]  # by length, the next one last
        for example in reversed(shuffled):
            self._examples[self._sizes[example]].append(example)
        different = np.unique(sizes).tolist()
        self._lengths: int = sum(1 << length for length in different)
        self._lengths_reversed: int = sum(1 << (max_length - length) for length in different)
        self._next_small = (e for e in shuffled if self._sizes[e] <= self._small and self.rows[e] < 0)
        self._small_example = next(self._next_small, None)

    def any(self) -> bool:
        return self._lengths != 0

    def exact(self, space: int) -> tuple[int, ...]:
        """Return one or two lengths that fill `space`, or an empty tuple."""
        if self._lengths >> space & 1:
            return (space,)
        # Bit n of the shifted reversed set stands for the length space - n.
        pairs = self._lengths & (self._lengths_reversed >> (self._max_length - space))
        half = space // 2
        if space % 2 == 0 and pairs >> half & 1 and len(self._examples[half]) < 2:
            pairs ^= 1 << half
        longer = pairs.bit_length() - 1
        return (longer, space - longer) if pairs else ()

    def next(self, space: int) -> int | None:
        """Return the length to place next where `space` can't be filled exactly, or None if nothing fits."""
        largest = (self._lengths & ((1 << (space + 1)) - 1)).bit_length() - 1
        if largest < 0:
            return None
        if largest <= self._small and self._small_example is not None:
            shuffled = self._sizes[self._small_example]
            return shuffled if shuffled <= space else largest
        return largest

    def place(self, length: int, row: int) -> None:
        """Put the next example of that length into a row."""
        example = self._examples[length].pop()
        self.rows[example] = row
        if not self._examples[length]:
            self._lengths ^= 1 << length
            self._lengths_reversed ^= 1 << (self._max_length - length)
        if example == self._small_example:
            self._small_example = next(self._next_small, None)


class Packer:
    """Packs the examples of an input piece into rows, `window` tokens at a time.

    `writer` None only counts. With `in_context`, examples get in-context samples from their window; `piece` is the
    piece's number, which seeds the draw.
    """

    def __init__(
        self,
        writer: PackedWriter | None,
        max_length: int,
        window: int,
        in_context: InContext | None = None,
        piece: int = 0,
    ) -> None:
        self.num_rows = self.num_tokens = 0
        self._writer, self._max_length, self._window = writer, max_length, window
        self._in_context, self._piece = in_context, piece
        self._examples: list[tuple[Example, Encoded]] = []
        self._tokens = 0

    def add(self, example: Example, encoded: Encoded | None) -> None:
        assert encoded is not None
        self._examples.append((example, encoded))
        self._tokens += encoded.num_tokens
        if self._tokens >= self._window:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._examples:
            return
        samples: list[Samples] = (
            [(encoded,) for _, encoded in self._examples]
            if self._in_context is None
            else self._in_context.extend(self._examples, (self._piece, self.num_rows))
        )
        lengths = [sum([sample.num_tokens for sample in one]) for one in samples]
        rows = pack(lengths, self._max_length)
        if self._writer is not None:
            order = np.argsort(rows, kind="stable")
            in_order = [samples[number] for number in order.tolist()]
            counts = np.array([len(one) for one in in_order])
            self._writer.write(Table.of(list(chain.from_iterable(in_order)), rows[order], counts))
        self.num_rows += int(rows.max()) + 1
        self.num_tokens += sum(lengths)
        self._examples, self._tokens = [], 0
