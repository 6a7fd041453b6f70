"""Which examples share a row."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack(lengths: Sequence[int] | NDArray[np.integer], max_length: int) -> NDArray[np.int32]:
    """The row of each example, so that no row holds more than `max_length` tokens.

    Takes lengths (E,) of 1..max_length tokens and gives rows (E,), numbered from 0 in the order in which they are
    filled. The same lengths in the same order always give the same rows.

    A row is filled with the largest example that fits while that is large (over a quarter of a row), then with small
    ones as they come in a shuffled order, and as soon as one or two of the rest fill it exactly, with those. Best fit
    decreasing uses up the long examples first and ends with rows that the short ones, all alike, do not fill.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= sizes.min() <= sizes.max() <= max_length:
        raise ValueError(f"lengths from {sizes.min()} to {sizes.max()} do not fit rows of {max_length}")
    rest = _Rest(sizes, max_length)
    row = 0
    while rest.any():
        space = max_length
        while space:
            exact = rest.exact(space)
            if exact:
                for length in exact:
                    rest.place(length, row)
                break
            next_length = rest.next(space)
            if next_length is None:
                break
            rest.place(next_length, row)
            space -= next_length
        row += 1
    return rest.rows


class _Rest:
    """The examples that have no row yet, by length.

    The set of their lengths is one large integer, bit by bit, so each question takes max_length / 64 machine words.
    """

    def __init__(self, sizes: NDArray[np.int64], max_length: int) -> None:
        self.rows = np.full(sizes.size, -1, dtype=np.int32)
        self._max_length = max_length
        self._small = max_length // 4
        self._sizes: list[int] = sizes.tolist()
        # Like the order of rows (`order`): a stream of words that no version of numpy changes.
        shuffled = np.argsort(np.random.Philox(0).random_raw(sizes.size), kind="stable").tolist()
        self._examples: list[list[int]] = [[] for _ in range(max_length + 1)]  # by length, the next one last
        for example in reversed(shuffled):
            self._examples[self._sizes[example]].append(example)
        self._lengths: int = sum(1 << length for length in np.unique(sizes).tolist())
        self._lengths_reversed: int = sum(1 << (max_length - length) for length in np.unique(sizes).tolist())
        self._next_small = (e for e in shuffled if self._sizes[e] <= self._small and self.rows[e] < 0)
        self._small_example = next(self._next_small, None)

    def any(self) -> bool:
        return self._lengths != 0

    def exact(self, space: int) -> tuple[int, ...]:
        """One or two lengths that fill `space`; empty if there are none."""
        if self._lengths >> space & 1:
            return (space,)
        # Bit n of the reversed set, shifted, stands for the length space - n.
        pairs = self._lengths & (self._lengths_reversed >> (self._max_length - space))
        half = space // 2
        if space % 2 == 0 and pairs >> half & 1 and len(self._examples[half]) < 2:
            pairs ^= 1 << half
        longer = pairs.bit_length() - 1
        return (longer, space - longer) if pairs else ()

    def next(self, space: int) -> int | None:
        """The length to go on with where `space` can't be filled exactly; None if nothing fits."""
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
