"""This rank's share of every step's rows, collated and brought to its device ahead of time by a background thread."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cpmbee_job.data.dataset.collate import collate
from cpmbee_job.data.dataset.order import MicroBatch, Order, share
from cpmbee_job.data.dataset.shards import RowDataset
from cpmbee_job.model.net.inputs import ModelInputs

PREFETCH = 2
"""Steps that are collated ahead."""


@dataclass(frozen=True)
class Vocabulary:
    """What of the vocabulary the targets need."""

    size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class Batch:
    """What one rank does in one step. `rows` are the ids of the whole step's rows, over all ranks."""

    step: int
    epoch: int
    rows: list[int]
    own_rows: list[int]
    """Ids of those of this rank, in the order of its micro-batches; what only pads is none of them."""
    micro_batches: list[ModelInputs]


class Batches:
    """Iterates the steps `first` to `last` (from 1, inclusive)."""

    def __init__(
        self,
        dataset: RowDataset,
        order: Order,
        vocabulary: Vocabulary,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        first: int,
        last: int,
        device: torch.device,
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.vocabulary = vocabulary
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.first, self.last = first, last
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
        closed = threading.Event()

        def work() -> None:
            for step in range(self.first, self.last + 1):
                item: Batch | BaseException
                try:
                    item = self._batch(step)
                except BaseException as error:  # raised where the batch is asked for
                    item = error
                while not closed.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                    except queue.Full:
                        continue
                    break
                if closed.is_set() or isinstance(item, BaseException):
                    return

        threading.Thread(target=work, name="batches", daemon=True).start()
        try:
            for _ in range(self.first, self.last + 1):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()

    def _batch(self, step: int) -> Batch:
        epoch, rows = self.order.step(step)
        mine = share(rows, self.rank, self.world_size, self.batch_size)
        own_rows = [row for micro_batch in mine for row in micro_batch.rows[micro_batch.weights].tolist()]
        micro_batches = [_inputs(self.dataset, self.vocabulary, micro_batch, self.device) for micro_batch in mine]
        return Batch(step, epoch, rows.tolist(), own_rows, micro_batches)


class AllRows:
    """This rank's share of every row, in order, as an evaluation reads them; collated anew each time."""

    def __init__(
        self,
        dataset: RowDataset,
        vocabulary: Vocabulary,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.vocabulary, self.device = dataset, vocabulary, device
        self.micro_batches = share(np.arange(dataset.num_rows), rank, world_size, batch_size)

    def __iter__(self) -> Iterator[ModelInputs]:
        return (_inputs(self.dataset, self.vocabulary, m, self.device) for m in self.micro_batches)


def _inputs(dataset: RowDataset, vocabulary: Vocabulary, micro_batch: MicroBatch, device: torch.device) -> ModelInputs:
    table = dataset.table(micro_batch.rows)
    batch = collate(table, vocabulary.size, vocabulary.bos_id, vocabulary.eos_id, weights=micro_batch.weights)
    return ModelInputs.from_numpy(**vars(batch)).prefetched(device)
