"""The processes that train together."""

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
"""Longer than any rank waits for another that gets on: it is the watchdog that notices a hang."""
SPREAD_AT_ONCE = 4
"""Broadcasts that are under way together: one waits for the other's bytes on the wire, not for its turn."""


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
        activity.moved()
        if isinstance(answer[0], CpmbeeError):
            raise answer[0]
        return cast(T, answer[0])

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank; the first error on one of them is raised on all, so that nobody waits for
        one that has given up."""
        fault: Exception | None = None
        mine: tuple[T | None, CpmbeeError | None]
        try:
            mine = work(), None
        except CpmbeeError as error:
            mine = None, error
        except Exception as error:  # a fault of ours: raised here as it is
            fault = error
            mine = None, CpmbeeError(f"{type(error).__name__}: {error}")
        answers = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(answers, mine)
        activity.moved()
        if fault is not None:
            raise fault
        for _, refusal in answers:
            if refusal is not None:
                raise refusal
        return [cast(T, value) for value, _ in answers]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here, once it has ended well on all ranks; an error on one of them is raised on all."""
        results: list[T] = []
        self.gather(lambda: results.append(work()))
        return results[0]

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Fill each tensor with what it holds on the rank beside it. The same tensors in the same order on all."""
        if self.size == 1:
            return
        running: deque[dist.Work] = deque()
        for tensor, owner in tensors:
            running.append(dist.broadcast(tensor, src=owner, async_op=True))
            if len(running) == SPREAD_AT_ONCE:
                running.popleft().wait()
                activity.moved()
        for work in running:
            work.wait()

    def exchange(self) -> Callable[[bool], int]:
        """What a `Watchdog` connects with. On a connection of its own: a call of torch's that waits in the store would
        hold up all others on the same one."""
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False)  # type: ignore[attr-defined]
        return lambda moved: store.add("cpmbee_job/moves", int(moved))

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
