"""Assign packed rows to steps and processes: a pure function of seed, epoch and step.

The order is a contract: it is the same on any machine and with any version of numpy. An epoch's rows are sorted by one
random 64-bit word each (ties by row number), drawn from Philox seeded with `SeedSequence([seed, epoch])`. numpy
guarantees that both streams never change, which it does not for `permutation`.

Several datasets without weights act as one that holds all their rows. With weights, an epoch has as many rows as all
sets together and a fixed number from each set, so that its examples are proportional to its weight. A set's rows come
in rounds, each a permutation of all of them (`SeedSequence([seed, round, set])`, sets counted from 1), and an epoch
continues where the previous one ended. So the rows of a small set repeat within an epoch, and those of a large set
spread over several epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.errors import DataError


@dataclass(frozen=True)
class SetShare:
    """A dataset's share in an epoch of a mixture, in packed rows."""

    num_rows: int
    """Rows of the whole set."""
    rows_per_epoch: int


def shares(num_rows: Sequence[int], num_examples: Sequence[int], weights: Sequence[float]) -> tuple[SetShare, ...]:
    """Divide an epoch of `sum(num_rows)` rows among the sets, its examples proportional to the weights up to rounding.

    Raises `DataError` for a weight that leaves its set without a row.
    """
    wanted = [Fraction(w) * r / e for w, r, e in zip(weights, num_rows, num_examples, strict=True)]
    exact = [part * sum(num_rows) / sum(wanted) for part in wanted]
    rows = [int(part) for part in exact]
    by_remainder = sorted(range(len(rows)), key=lambda n: (rows[n] - exact[n], n))
    for number in by_remainder[: sum(num_rows) - sum(rows)]:
        rows[number] += 1
    if 0 in rows:
        number, total = rows.index(0), sum(rows)
        raise DataError(
            f"data.train.{number}.weight: leaves the dataset none of an epoch's {total} packed rows "
            f"(got {weights[number]:g})",
            hint="raise the weight, or remove the dataset",
        )
    return tuple(SetShare(total, part) for total, part in zip(num_rows, rows, strict=True))


@dataclass(frozen=True)
class Order:
    """The order of `num_rows` packed rows in steps of `global_batch_size` rows, for any number of processes.

    If the rows do not divide evenly, an epoch ends with a shorter step; `drop_last` drops it. With `mixture` the rows
    are those of several sets, numbered consecutively, and the shares decide which of them an epoch has. Raises
    `DataError` if no step remains.
    """

    num_rows: int
    global_batch_size: int
    seed: int
    drop_last: bool = False
    mixture: tuple[SetShare, ...] = ()

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise DataError("the dataset has no packed rows")
        if self.steps_per_epoch < 1:
            raise DataError(
                f"train.drop_last: leaves no step: {self.num_rows} packed rows, a step takes {self.global_batch_size}",
                hint="set train.drop_last to false, or lower train.global_batch_size (or batch_size)",
            )

    @property
    def steps_per_epoch(self) -> int:
        short = 0 if self.drop_last else self.global_batch_size - 1
        return (self.num_rows + short) // self.global_batch_size

    def step(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Return the epoch (from 1) and the rows (at most `global_batch_size`) of a step (from 1, over all epochs)."""
        if step < 1:
            raise ValueError(f"step: must be at least 1 (got {step})")
        epochs_done, step_in_epoch = divmod(step - 1, self.steps_per_epoch)
        rows = _permutation(self.num_rows, self.seed, epochs_done + 1)
        if self.mixture:
            rows = _mixed(self.mixture, self.seed, epochs_done + 1)[rows]
        start = step_in_epoch * self.global_batch_size
        return epochs_done + 1, rows[start : start + self.global_batch_size]


@lru_cache(maxsize=2)  # the current epoch, and the next one for prefetching
def _mixed(mixture: tuple[SetShare, ...], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the rows of an epoch of a mixture, set by set."""
    found = []
    first_row = 0
    for number, part in enumerate(mixture):
        positions = np.arange((epoch - 1) * part.rows_per_epoch, epoch * part.rows_per_epoch)
        for turn in range(positions[0] // part.num_rows, positions[-1] // part.num_rows + 1):
            in_turn = positions[positions // part.num_rows == turn] % part.num_rows
            found.append(first_row + _permutation(part.num_rows, seed, turn, number + 1)[in_turn])
        first_row += part.num_rows
    return np.concatenate(found)


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, *key: int) -> NDArray[np.int64]:
    """Return the rows in the order that the seed and a key give: an epoch, or a round and a set."""
    words = np.random.Philox(np.random.SeedSequence([seed, *key])).random_raw(num_rows)
    rows = np.argsort(words, kind="stable").astype(np.int64, copy=False)
    rows.flags.writeable = False
    return rows


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows (B,) of one forward pass; weight False marks padding."""

    rows: NDArray[np.int64]
    weights: NDArray[np.bool_]


def share(rows: NDArray[np.int64], rank: int, world_size: int, batch_size: int) -> list[MicroBatch]:
    """Return the micro-batches of a step for one of `world_size` ranks.

    Rows are dealt round-robin: each counts on exactly one rank, and the ranks' numbers of rows differ by at most one.
    All ranks get equally many micro-batches of at most `batch_size` rows. A rank with too few rows repeats the step's
    first row with weight False.
    """
    if not rows.size:
        raise ValueError("a step needs at least one row")
    most = -(-rows.size // world_size)
    num_batches = -(-most // batch_size)
    own = rows[rank::world_size]
    batches = [own[start : start + batch_size] for start in range(0, own.size, batch_size)]
    shares = [MicroBatch(batch, np.ones(batch.size, dtype=np.bool_)) for batch in batches]
    padding = MicroBatch(rows[:1], np.zeros(1, dtype=np.bool_))
    return shares + [padding] * (num_batches - len(shares))
