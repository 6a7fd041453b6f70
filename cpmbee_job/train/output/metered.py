"""Progress as metrics."""

import torch

from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output import metrics
from cpmbee_job.train.output.progress import Progress
from cpmbee_job.train.world import World


class Metered:
    """A `Progress` that sets the metrics, too. Every rank knows the numbers of the whole step, so each pod serves them
    by its first rank, whichever pods are lost; the memory of its own GPU each rank does."""

    def __init__(self, inner: Progress, run: str, world: World, total_steps: int) -> None:
        self._inner, self._run, self._world = inner, run, world
        if world.local_rank == 0:
            metrics.PLANNED_STEPS.labels(run).set(total_steps)
            metrics.WORLD_SIZE.labels(run).set(world.size)
        if world.device.type == "cuda":
            size = torch.cuda.get_device_properties(world.device).total_memory
            metrics.GPU_SIZE.labels(run, world.local_rank).set(size)

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None:
        if self._world.local_rank == 0:
            metrics.STEP.labels(self._run).set(step)
            metrics.LOSS.labels(self._run).set(result.loss)
            metrics.TOKENS.labels(self._run).inc(result.tokens)
            metrics.PROGRESS.labels(self._run).set_to_current_time()
        if self._world.device.type == "cuda":  # counted by torch on the host: nothing waits for the GPU
            gpu = self._run, self._world.local_rank
            metrics.GPU_PEAK.labels(*gpu).set(torch.cuda.max_memory_allocated(self._world.device))
            metrics.GPU_RESERVED.labels(*gpu).set(torch.cuda.memory_reserved(self._world.device))
        self._inner.step(step, epoch, learning_rate, result)

    def evaluation(self, step: int, result: EvalResult, best: bool) -> None:
        if self._world.local_rank == 0:
            metrics.EVAL_LOSS.labels(self._run).set(result.loss)
            metrics.PROGRESS.labels(self._run).set_to_current_time()
        self._inner.evaluation(step, result, best)

    def say(self, message: str) -> None:
        self._inner.say(message)

    def flush(self) -> None:
        self._inner.flush()

    def close(self, state: str) -> None:
        self._inner.close(state)

    def drop(self) -> None:
        self._inner.drop()
