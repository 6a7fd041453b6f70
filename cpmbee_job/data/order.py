"""Which rows belong to which step, and to which process: a pure function of seed, epoch and step.

The order is part of the contract, the same on any machine and with any version of numpy: the rows of an epoch are
sorted by one 64-bit word each (the smaller number of a row first where two are equal), drawn from Philox seeded with
`SeedSequence([seed, epoch])`. Both streams are ones that numpy promises never to change (its `permutation` is not).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.errors import DataError


@dataclass(frozen=True)
class Order:
    """Order of `num_rows` rows in steps of `global_batch_size` rows, whatever the number of processes.

    An epoch ends with a shorter step where the rows do not come out even, unless `drop_last` leaves it out.
    Raises `DataError` where no step remains.
    """

    num_rows: int
    global_batch_size: int
    seed: int
    drop_last: bool = False

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
        start = step_in_epoch * self.global_batch_size
        return epochs_done + 1, rows[start : start + self.global_batch_size]


@lru_cache(maxsize=2)  # the current epoch, and the next one of whoever looks ahead
def _permutation(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
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

    Each row counts on exactly one rank, the ranks' numbers of rows differ by at most one. All ranks get equally many
    micro-batches, of at most `batch_size` rows; one that has too few rows repeats the step's first, with weight False.
    """
    if not rows.size:
        raise ValueError("a step has at least one row")
    most = -(-rows.size // world_size)
    num_batches = -(-most // batch_size)
    own = rows[rank * rows.size // world_size : (rank + 1) * rows.size // world_size]
    batches = [own[start : start + batch_size] for start in range(0, own.size, batch_size)]
    shares = [MicroBatch(batch, np.ones(batch.size, dtype=np.bool_)) for batch in batches]
    padding = MicroBatch(rows[:1], np.zeros(1, dtype=np.bool_))
    return shares + [padding] * (num_batches - len(shares))
