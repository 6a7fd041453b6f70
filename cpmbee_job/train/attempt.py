"""One attempt at a run: a world of processes that trains from the newest checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt
from cpmbee_job.run.run import Run
from cpmbee_job.train.attempt_log import AttemptLog
from cpmbee_job.train.world import World


@dataclass(frozen=True)
class Exports:
    """Local copies of results, for the flags of the original script."""

    tensorboard: Path | None = None
    """Folder for TensorBoard events, which are not uploaded then."""
    metrics: Path | None = None
    """File for a copy of `metrics.jsonl`."""
    best: Path | None = None
    """File for a copy of the best weights, in the original's format."""


NO_EXPORTS = Exports()


@dataclass(frozen=True)
class Attempt:
    """This rank's view of the attempt."""

    run: Run
    world: World
    number: int
    exports: Exports = NO_EXPORTS
    log: AttemptLog | None = None
    """On each pod's first rank."""

    @classmethod
    def claim(cls, run: Run, world: World, exports: Exports) -> Self:
        """Claim the next attempt number for the world. Collective."""
        number = world.broadcast_object(lambda: claim_attempt(run.store, world.size))
        return cls(run, world, number, exports, AttemptLog(number) if world.local_rank == 0 else None)

    @property
    def run_name(self) -> str:
        """`<name>/<run id>`, the label `run` of all metrics."""
        return keys.run_name(self.run.url)

    def upload_log(self) -> None:
        if self.log is not None:
            self.log.upload(self.run.store)
