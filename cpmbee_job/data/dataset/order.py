"""Which rows belong to which step, and to which process: a pure function of seed, epoch and step.

The order is part of the contract, the same on any machine and with any version of numpy: the rows of an epoch are
sorted by one 64-bit word each (the smaller number of a row first where two are equal), drawn from Philox seeded with
`SeedSequence([seed, epoch])`. Both streams are ones that numpy promises never to change (its `permutation` is not).

Several data sets without weights are like one that holds the rows of all. With weights an epoch has as many rows as
all sets together, and a fixed number of each set's: its examples are in proportion to its weight. A set's rows come in
rounds of all of them, each round in an order of its own (`SeedSequence([seed, round, set])`, sets counted from 1), and
an epoch goes on where the one before has ended. So a small set's rows come several times in an epoch, a large one's
once in several.
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
    """How much of a data set is in an epoch of a mixture."""

    num_rows: int
    """Of the whole set."""
    rows_per_epoch: int


def shares(num_rows: Sequence[int], num_examples: Sequence[int], weights: Sequence[float]) -> tuple[SetShare, ...]:
    """The rows of an epoch by set, as many as all sets have, so that the numbers of examples are in proportion to the
    weights (as near as whole rows allow).

    Raises `DataError` for a weight that would leave a set without a row.
    """
    wanted = [Fraction(w) * r / e for w, r, e in zip(weights, num_rows, num_examples, strict=True)]
    exact = [part * sum(num_rows) / sum(wanted) for part in wanted]
    rows = [int(part) for part in exact]
    by_remainder = sorted(range(len(rows)), key=lambda n: (rows[n] - exact[n], n))
    for number in by_remainder[: sum(num_rows) - sum(rows)]:
        rows[number] += 1
    if 0 in rows:
        raise DataError(
            f"data.train.{rows.index(0)}.weight: {weights[rows.index(0)]:g} leaves it no row of an epoch's {sum(rows)}",
            hint="raise it, or leave the data set out",
        )
    return tuple(SetShare(total, part) for total, part in zip(num_rows, rows, strict=True))


@dataclass(frozen=True)
class Order:
    """Order of `num_rows` rows in steps of `global_batch_size` rows, whatever the number of processes.

    An epoch ends with a shorter step where the rows do not come out even, unless `drop_last` leaves it out. With
    `mixture` the rows are those of several sets, numbered on from one to the next, and weights decide which of them an
    epoch has. Raises `DataError` where no step remains.
    """

    num_rows: int
    global_batch_size: int
    seed: int
    drop_last: bool = False
    mixture: tuple[SetShare, ...] = ()

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise DataError("the data set has no rows")
        if self.steps_per_epoch < 1:
            raise DataError(
                f"drop_last leaves no step: {self.num_rows} rows do not fill one of {self.global_batch_size}",
                hint="set train.drop_last to false, or train.global_batch_size (or batch_size) lower",
            )

    @property
    def steps_per_epoch(self) -> int:
        short = 0 if self.drop_last else self.global_batch_size - 1
        return (self.num_rows + short) // self.global_batch_size

    def step(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch (from 1) and rows (at most `global_batch_size`) of a step (from 1, over all epochs)."""
        if step < 1:
            raise ValueError(f"steps are counted from 1, not {step}")
        epochs_done, step_in_epoch = divmod(step - 1, self.steps_per_epoch)
        rows = _permutation(self.num_rows, self.seed, epochs_done + 1)
        if self.mixture:
            rows = _mixed(self.mixture, self.seed, epochs_done + 1)[rows]
        start = step_in_epoch * self.global_batch_size
        return epochs_done + 1, rows[start : start + self.global_batch_size]


@lru_cache(maxsize=2)  # the current epoch, and the next one of whoever looks ahead
def _mixed(mixture: tuple[SetShare, ...], seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of an epoch of a mixture, set by set."""
    found = []
    first_row = 0
    for number, part in enumerate(mixture):
        places = np.arange((epoch - 1) * part.rows_per_epoch, epoch * part.rows_per_epoch)
        for turn in range(places[0] // part.num_rows, places[-1] // part.num_rows + 1):
            in_turn = places[places // part.num_rows == turn] % part.num_rows
            found.append(first_row + _permutation(part.num_rows, seed, turn, number + 1)[in_turn])
        first_row += part.num_rows
    return np.concatenate(found)


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, *place: int) -> NDArray[np.int64]:
    """The rows in the order that belongs to a place: an epoch, or a round and a set."""
    words = np.random.Philox(np.random.SeedSequence([seed, *place])).random_raw(num_rows)
    rows = np.argsort(words, kind="stable").astype(np.int64, copy=False)
    rows.flags.writeable = False
    return rows


@dataclass(frozen=True)
class MicroBatch:
    """Rows (B,) of one forward pass, and for each whether it counts; one that does not is padding."""

    rows: NDArray[np.int64]
    weights: NDArray[np.bool_]


def share(rows: NDArray[np.int64], rank: int, world_size: int, batch_size: int) -> list[MicroBatch]:
    """What one of `world_size` processes does of a step.

    Rows are dealt out in turn: each counts on exactly one rank, the ranks' numbers of rows differ by at most one. All
    ranks get equally many micro-batches, of at most `batch_size` rows; one that has too few rows repeats the step's
    first, with weight False.
    """
    if not rows.size:
        raise ValueError("a step has at least one row")
    most = -(-rows.size // world_size)
    num_batches = -(-most // batch_size)
    own = rows[rank::world_size]
    batches = [own[start : start + batch_size] for start in range(0, own.size, batch_size)]
    shares = [MicroBatch(batch, np.ones(batch.size, dtype=np.bool_)) for batch in batches]
    padding = MicroBatch(rows[:1], np.zeros(1, dtype=np.bool_))
    return shares + [padding] * (num_batches - len(shares))
