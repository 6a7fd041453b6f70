"""What the training loop reports to: a base class that reports nothing, and the metrics of every rank.

Rank 0 reports more, see `journal`.
"""

import torch

from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output import metrics


class Progress:
    """Reports nothing."""

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None: ...

    def evaluation(self, step: int, result: EvalResult, is_best: bool) -> None: ...

    def log(self, message: str) -> None:
        """Log a message, on rank 0 only."""

    def flush(self) -> None:
        """Write everything that has been reported to the store."""

    def close(self, state: str) -> None:
        """Write everything, with the final `state` of the attempt."""

    def abandon(self) -> None:
        """Close without writing to the store: a newer attempt owns the run."""


class Metered(Progress):
    """Sets the Prometheus metrics of this rank.

    The numbers of a step are the same on all ranks. Each pod serves them for its first rank, so that they survive the
    loss of any other pod; GPU memory is per rank.
    """

    def __init__(self, attempt: Attempt, total_steps: int) -> None:
        self._run_name, self._world = attempt.run_name, attempt.world
        if self._world.local_rank == 0:
            metrics.PLANNED_STEPS.labels(self._run_name).set(total_steps)
            metrics.WORLD_SIZE.labels(self._run_name).set(self._world.size)
        if self._world.device.type == "cuda":
            size = torch.cuda.get_device_properties(self._world.device).total_memory
            metrics.GPU_SIZE.labels(self._run_name, self._world.local_rank).set(size)

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None:  # noqa: ARG002
        if self._world.local_rank == 0:
            metrics.STEP.labels(self._run_name).set(step)
            metrics.LOSS.labels(self._run_name).set(result.loss)
            metrics.TOKENS.labels(self._run_name).inc(result.tokens)
            metrics.PROGRESS.labels(self._run_name).set_to_current_time()
        if self._world.device.type == "cuda":  # torch counts on the host: no wait for the GPU
            gpu = self._run_name, self._world.local_rank
            metrics.GPU_PEAK.labels(*gpu).set(torch.cuda.max_memory_allocated(self._world.device))
            metrics.GPU_RESERVED.labels(*gpu).set(torch.cuda.memory_reserved(self._world.device))

    def evaluation(self, step: int, result: EvalResult, is_best: bool) -> None:  # noqa: ARG002
        if self._world.local_rank == 0:
            metrics.EVAL_LOSS.labels(self._run_name).set(result.loss)
            metrics.PROGRESS.labels(self._run_name).set_to_current_time()
