"""The processes that train together."""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist

from cpmbee_job.errors import CpmbeeError
from cpmbee_job.pod import num_cpus

T = TypeVar("T")

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=1)
"""Longer than rank 0 may need to publish at the end; while training, the watchdog is the one that notices a hang."""


@dataclass(frozen=True)
class World:
    rank: int
    local_rank: int
    size: int
    device: torch.device

    @classmethod
    def form(cls) -> Self:
        """Form the world that torchrun's environment describes; without torchrun, a world of one."""
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        size, local_size = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
            threads = os.environ.get("OMP_NUM_THREADS")  # the user's word, or our entrypoint's
            torch.set_num_threads(int(threads) if threads else max(1, num_cpus() // local_size))
        if size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
        return cls(rank, local_rank, size, device)

    def agree(self, decide: Callable[[], T]) -> T:
        """What rank 0 decides, on all ranks; an error of ours in deciding is raised on all of them too."""
        answer: list[Any] = [None]
        if self.rank == 0:
            try:
                answer = [decide()]
            except CpmbeeError as error:
                answer = [error]
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0, device=self.device)
        if isinstance(answer[0], CpmbeeError):
            raise answer[0]
        return cast(T, answer[0])

    def leave(self) -> None:
        """Wait for all ranks, then dissolve the world."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def to_first(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on rank 0; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None, dst=0)
        return values if self.rank == 0 else []
