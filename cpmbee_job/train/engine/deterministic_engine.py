"""The engine of `train.deterministic`: bit-identical results for any number of processes, even if it changes.

The sum of floating-point numbers depends on their order, and a matrix product on its sizes and the number of threads.
So each forward pass has one packed row (the batch size must be 1, which deals the rows of a step out in turn), a CPU
uses one thread, and after each micro-batch every rank adds the gradients of all ranks one by one, in the step's order.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.train.engine.torch_engine import TorchEngine


def use_deterministic_algorithms(device: torch.device) -> None:
    """Make torch return the same bits for the same inputs, in the whole process."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_num_threads(1)  # the order of a sum depends on the number of threads


class DeterministicEngine(TorchEngine):
    """`TorchEngine` that sums in the order of the packed rows in the step or evaluation."""

    def _reduction_groups(self, micro_batches: Iterable[ModelInputs]) -> Iterable[Iterable[ModelInputs]]:
        return ([batch] for batch in micro_batches)

    def _all_reduce(self, total: Tensor | None, own: Tensor) -> Tensor:
        if total is None:
            total = torch.zeros_like(own)
        shares = [own]
        if dist.is_initialized():
            shares = [torch.empty_like(own) for _ in range(self.world_size)]
            dist.all_gather(shares, own)
        for share in shares:
            total += share
        return total
