"""Summarize the lengths of examples, counted by length so that memory does not grow with the number of examples."""

from collections import Counter

import numpy as np

from cpmbee_job.data.check.report import Bin, Lengths

_PERCENTILES = (50, 90, 95, 99)
_MOST_BINS = 12


def summary(counts: Counter[int]) -> Lengths | None:
    """Summarize the number of examples of each length; None without examples."""
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
    """Return at most 12 bins of a round width. The last bin takes a few much longer examples."""
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
    """Return 1, 2 or 5 times a power of ten that divides `spread` into few bins."""
    width, factors = 1, (2, 2.5, 2)
    number = 0
    while spread / width > _MOST_BINS - 2:
        width = int(width * factors[number % 3])
        number += 1
    return width
