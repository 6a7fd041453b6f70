"""Measure how full packed rows of 2048 tokens are, including the last ones."""

from collections.abc import Iterator

import numpy as np

from benchmarks import inputs
from benchmarks.inputs import MAX_LENGTH
from benchmarks.measure import Figure
from benchmarks.original import ROWS_OF_A_BATCH
from cpmbee_job.data.dataset.pack import pack


def figures(quick: bool) -> Iterator[Figure]:
    (index,) = inputs.prepared_ccpm(quick).indexes
    fill = index.tokens / (index.rows * MAX_LENGTH)
    yield Figure(
        what="packing CCPM into rows of 2048, default pieces",
        ours=f"{fill:.2%} full, {index.rows:,} rows in {len(index.parts)} parts",
        baseline=f"{index.tokens / MAX_LENGTH:,.1f} rows would be 100 %",
        ratio=fill,
        mark=0.985,
    )
    for name, lengths in _mixes(10_000 if quick else 50_000).items():
        bound = -(-int(lengths.sum()) // MAX_LENGTH)
        rows = int(pack(lengths, MAX_LENGTH).max()) + 1
        yield Figure(
            what=f"packing {len(lengths):,} lengths up to 2048, {name}",
            ours=f"{rows:,} rows",
            baseline=f"{bound:,} rows, the lower bound; {_open_rows(lengths):,} the original's way",
            ratio=rows / bound,
            mark=1.01,
            bound="at most",
        )


def _mixes(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    texts = np.clip(np.exp(draw.normal(5.5, 1.0, count)), 16, MAX_LENGTH)
    both = np.where(draw.random(count) < 0.7, draw.normal(90, 25, count), draw.uniform(200, MAX_LENGTH, count))
    mixes = {
        "log-normal": texts,
        "uniform": draw.uniform(1, MAX_LENGTH, count),
        "short and long": np.clip(both, 16, MAX_LENGTH),
    }
    return {name: lengths.astype(np.int64) for name, lengths in mixes.items()}


def _open_rows(lengths: np.ndarray) -> int:
    """Count the rows by the original's rule: the fullest open row that still has room. When more rows are open than a
    batch has, the oldest batch is closed."""
    spaces = np.empty(0, dtype=np.int64)
    closed = 0
    for length in lengths.tolist():
        fits = np.flatnonzero(spaces >= length)
        if fits.size:
            spaces[fits[spaces[fits].argmin()]] -= length
            continue
        spaces = np.append(spaces, MAX_LENGTH - length)
        if spaces.size > ROWS_OF_A_BATCH:
            spaces = spaces[ROWS_OF_A_BATCH:]
            closed += ROWS_OF_A_BATCH
    return closed + spaces.size
