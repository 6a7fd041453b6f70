"""The world of processes that train together, and its collectives on objects and tensors.

Tensors of a step are all-reduced by the engines; everything else goes through `World`.
"""

import datetime
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from cpmbee_job.errors import CpmbeeError
from cpmbee_job.process import activity
from cpmbee_job.process.pod import num_cpus

T = TypeVar("T")

COLLECTIVE_TIMEOUT = datetime.timedelta(days=7)
"""Longer than any rank waits for a slow peer: the watchdog detects hangs, not torch."""
CONCURRENT_BROADCASTS = 4
"""Enough to keep the network busy."""


@dataclass(frozen=True)
class World:
    """This process's place in the world. Methods without another note are collective: all ranks call them."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @classmethod
    def init(cls) -> Self:
        """Join the world that torchrun's environment describes; without torchrun, create a world of size 1."""
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        size, local_size = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
            threads = os.environ.get("OMP_NUM_THREADS")  # set by the user or by the entrypoint
            torch.set_num_threads(int(threads) if threads else max(1, num_cpus() // local_size))
        if size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
        return cls(rank, local_rank, size, device)

    def broadcast_object(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0 and return its result on all ranks. A `CpmbeeError` of it is raised on all ranks."""
        result: list[Any] = [None]
        if self.rank == 0:
            try:
                result = [compute()]
            except CpmbeeError as error:
                result = [error]
        if self.size > 1:
            dist.broadcast_object_list(result, src=0, device=self.device)
        activity.record()
        if isinstance(result[0], CpmbeeError):
            raise result[0]
        return cast(T, result[0])

    def all_gather_object(self, compute: Callable[[], T]) -> list[T]:
        """Call `compute` on each rank and return the results of all ranks, on all ranks.

        If it fails on any rank, raise the error on all ranks, so that none waits for a peer that has failed.
        """
        bug: Exception | None = None
        own: tuple[T | None, CpmbeeError | None]
        try:
            own = compute(), None
        except CpmbeeError as error:
            own = None, error
        except Exception as error:
            bug = error  # raised with its traceback on this rank
            own = None, CpmbeeError(f"{type(error).__name__}: {error}")
        results = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(results, own)
        activity.record()
        if bug is not None:
            raise bug
        for _, failure in results:
            if failure is not None:
                raise failure
        return [cast(T, value) for value, _ in results]

    def on_all_ranks(self, compute: Callable[[], T]) -> T:
        """Call `compute` on each rank and return this rank's result; raise an error of any rank on all."""
        own: list[T] = []
        self.all_gather_object(lambda: own.append(compute()))
        return own[0]

    def gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None, dst=0)
        return values if self.rank == 0 else []

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Broadcast each tensor from its source rank. All ranks give the same shapes and sources in the same order."""
        if self.size == 1:
            return
        running: deque[dist.Work] = deque()
        for tensor, source in tensors:
            running.append(dist.broadcast(tensor, src=source, async_op=True))
            if len(running) == CONCURRENT_BROADCASTS:
                running.popleft().wait()
                activity.record()
        for work in running:
            work.wait()

    def shared_counter(self) -> Callable[[bool], int]:
        """Connect to a counter in torch's store, for a `Watchdog`. Not collective.

        The returned function adds its argument and returns the new count. It has a connection of its own, because a
        call that blocks in the store would block all others on the same connection.
        """
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False)  # type: ignore[attr-defined]
        return lambda moved: store.add("cpmbee_job/moves", int(moved))

    def destroy(self) -> None:
        """Wait for all ranks, then destroy the process group."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()
