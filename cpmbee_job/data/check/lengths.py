"""How long the examples of a data set are: counted by length, so that memory does not grow with the rows."""

from collections import Counter

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_PERCENTILES = (50, 90, 95, 99)
_MOST_BINS = 12


class Lengths(BaseModel):
    """Tokens of all examples, and of an example."""

    model_config = ConfigDict(frozen=True)

    total: int
    min: int
    mean: float
    p50: int = Field(description="Half of the examples have at most so many; p90, p95, p99 likewise.")
    p90: int
    p95: int
    p99: int
    max: int


class Bin(BaseModel):
    """One bar of the histogram."""

    model_config = ConfigDict(frozen=True)

    first: int = Field(description="Tokens of an example, from `first` to `last`.")
    last: int
    examples: int


def summary(counts: Counter[int]) -> Lengths | None:
    """Of the number of examples of each length; None of nothing."""
    if not counts:
        return None
    lengths = np.array(sorted(counts), dtype=np.int64)
    examples = np.array([counts[length] for length in lengths.tolist()], dtype=np.int64)
    ends = np.cumsum(examples)
    total, num_examples = int(lengths @ examples), int(ends[-1])
    ranks = [-(-percent * num_examples // 100) for percent in _PERCENTILES]
    percentiles = lengths[np.searchsorted(ends, ranks)].tolist()
    return Lengths(
        total=total,
        min=int(lengths[0]),
        mean=round(total / num_examples, 2),
        **dict(zip((f"p{percent}" for percent in _PERCENTILES), percentiles, strict=True)),
        max=int(lengths[-1]),
    )


def histogram(counts: Counter[int]) -> tuple[Bin, ...]:
    """A dozen bins at most, of a round width that suits all but a few very long examples, which the last bin takes."""
    lengths = summary(counts)
    if lengths is None:
        return ()
    long = lengths.p99 if lengths.p99 <= 2 * lengths.p95 else lengths.p95
    width = _round_width(long - lengths.min + 1)
    start = lengths.min - lengths.min % width
    last = min((long - start) // width + 1, (lengths.max - start) // width)
    bins = [0] * (last + 1)
    for length, examples in counts.items():
        bins[min((length - start) // width, last)] += examples
    return tuple(
        Bin(
            first=start + number * width,
            last=lengths.max if number == last else start + (number + 1) * width - 1,
            examples=examples,
        )
        for number, examples in enumerate(bins)
    )


def _round_width(spread: int) -> int:
    """1, 2 or 5 times a power of ten, of which not many go into `spread`."""
    width, factors = 1, (2, 2.5, 2)
    number = 0
    while spread / width > _MOST_BINS - 2:
        width = int(width * factors[number % 3])
        number += 1
    return width
