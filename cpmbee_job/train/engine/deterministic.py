"""The engine of `train.deterministic`: the same bytes whatever the number of processes, and however often it changes.

Sums of floating point numbers depend on their order, products of matrices on the sizes and on the number of threads. So
a forward pass has one row (the batches are to be made with a batch size of 1, which deals a step's rows out in turn), a
CPU one thread, and after every turn all ranks add all ranks' gradients, one by one, in the step's order.
"""

import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.train.engine.torch_engine import TorchEngine


def compute_deterministically(device: torch.device) -> None:
    """Have torch give the same bits for the same inputs, in all of this process."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS looks when it is first used
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_num_threads(1)  # one thread has one order


class DeterministicEngine(TorchEngine):
    """`TorchEngine` where the order of every sum is that of the rows in the step or in the evaluation."""

    def _summed(
        self, step: int, micro_batches: Sequence[ModelInputs], wants_stop: Callable[[], bool]
    ) -> tuple[Tensor, Tensor]:
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._clear_gradients()
        flat = torch.zeros_like(self._flat_gradient())
        counts = torch.zeros(4, dtype=torch.float64, device=self.device)
        for turn, batch in enumerate(micro_batches):
            if self.model.config.dropout_p:  # by the row's place in the step
                torch.manual_seed(hash((self.seed, step, turn * world_size + self.rank)))
            own = torch.zeros_like(counts)
            self._backward(batch, own)
            own[3] = float(wants_stop())
            _add_in_order(flat, self._flat_gradient())
            _add_in_order(counts, own)
            self._clear_gradients()
        return flat, counts

    def _count_evaluated(self, totals: Tensor, own: Tensor) -> None:
        _add_in_order(totals, own)

    def _sum_evaluated(self, totals: Tensor) -> None:
        """They are all ranks' already."""


def _add_in_order(total: Tensor, own: Tensor) -> None:
    """Add what each rank has to the total of each, rank by rank."""
    if not dist.is_initialized():
        total += own
        return
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    for part in parts:
        total += part
