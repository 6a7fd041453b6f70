"""Loads this rank's packed rows: collated, and copied to its device in advance by a background thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cpmbee_job.data.dataset.collate import collate
from cpmbee_job.data.dataset.order import MicroBatch, Order, share
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.model.net.inputs import ModelInputs

PREFETCH = 3
"""Steps to load in advance."""


@dataclass(frozen=True)
class Vocabulary:
    """The properties of the vocabulary on which targets depend."""

    size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class RankLoader:
    """Splits packed rows between ranks and loads those of this rank."""

    dataset: PackedDataset
    vocabulary: Vocabulary
    rank: int
    world_size: int
    batch_size: int
    """Packed rows of a micro-batch, at most."""
    device: torch.device

    def micro_batches(self, rows: NDArray[np.int64]) -> list[MicroBatch]:
        return share(rows, self.rank, self.world_size, self.batch_size)

    def load(self, micro_batch: MicroBatch) -> ModelInputs:
        table = self.dataset.table(micro_batch.rows)
        vocabulary = self.vocabulary
        batch = collate(table, vocabulary.size, vocabulary.bos_id, vocabulary.eos_id, weights=micro_batch.weights)
        return ModelInputs.from_numpy(**vars(batch)).prefetched(self.device)


@dataclass(frozen=True)
class Batch:
    """One step on one rank."""

    step: int
    epoch: int
    rows: list[int]
    """Ids of the step's packed rows on all ranks."""
    own_rows: list[int]
    """Ids of this rank's packed rows, in the order of its micro-batches, without padding."""
    micro_batches: list[ModelInputs]


class Batches:
    """Iterates over the steps `first` to `last` (from 1, inclusive)."""

    def __init__(self, loader: RankLoader, order: Order, *, first: int, last: int) -> None:
        self._loader, self._order = loader, order
        self._steps = range(first, last + 1)

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            loading = deque(pool.submit(self._load, step) for step in self._steps[:PREFETCH])
            for step in self._steps:
                batch = loading.popleft().result()
                if step + PREFETCH in self._steps:
                    loading.append(pool.submit(self._load, step + PREFETCH))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, step: int) -> Batch:
        epoch, rows = self._order.step(step)
        micro_batches = self._loader.micro_batches(rows)
        own_rows = [row for micro_batch in micro_batches for row in micro_batch.rows[micro_batch.weights].tolist()]
        return Batch(step, epoch, rows.tolist(), own_rows, [self._loader.load(m) for m in micro_batches])


class EvalBatches:
    """Iterates over this rank's share of the whole dataset, in order; collated again in each iteration."""

    def __init__(self, loader: RankLoader) -> None:
        self._loader = loader
        self._micro_batches = loader.micro_batches(np.arange(loader.dataset.num_rows))

    def __iter__(self) -> Iterator[ModelInputs]:
        return map(self._loader.load, self._micro_batches)
