"""What of a run goes into the store: checkpoints, deltas, in the end its result. Rank 0 writes, in the background."""

import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from cpmbee_job import documents
from cpmbee_job.model.lora import save_delta_folder
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import first_start
from cpmbee_job.run.checkpoints import prune_checkpoints
from cpmbee_job.run.deltas import prune_deltas, upload_delta
from cpmbee_job.run.model_files import CONFIG, VOCABULARY
from cpmbee_job.run.pointers import move_pointer
from cpmbee_job.run.resumable import spec_digest
from cpmbee_job.run.rows import RowRecorder
from cpmbee_job.run.run import Run
from cpmbee_job.store.retry import patiently
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.interface import Engine
from cpmbee_job.train.loop import Position
from cpmbee_job.train.output import metrics
from cpmbee_job.train.output.checkpoint import Checkpoint, write_checkpoint
from cpmbee_job.train.output.exports import Exports
from cpmbee_job.train.output.progress import Progress
from cpmbee_job.train.output.uploader import Uploader, num_bytes
from cpmbee_job.train.world import World


class Publisher:
    """The loop's `Saver`; rank 0 writes, the others only take part in gathering."""

    def __init__(
        self,
        run: Run,
        world: World,
        attempt: int,
        engine: Engine,
        progress: Progress,
        model: ModelFiles,
        base_digest: str,
        exports: Exports,
        begun_at: Checkpoint | None,
        eval_digest: Callable[[], str | None],
        keep_log: Callable[[], None],
    ) -> None:
        self._run, self._world, self._attempt = run, world, attempt
        self._engine, self._progress, self._model, self._exports = engine, progress, model, exports
        self._base_digest = base_digest
        self._eval_digest = cache(eval_digest)  # of many examples it takes a while: once, where nothing waits for it
        self._keep_log = keep_log  # of rank 0, before the result
        self._rows = RowRecorder(world.gather_object, None if begun_at is None else begun_at.pointer)
        self._uploader = Uploader()
        self._newest_delta = ""

    def trained(self, batch: Batch) -> None:
        self._rows.note(batch.step, batch.epoch, batch.own_rows)

    def checkpoint(self, position: Position) -> None:
        stepped_at = time.time()
        state = self._engine.state()
        self._rows.gather()
        if self._world.rank == 0:
            store, step, attempt = self._run.store, position.step, self._attempt
            self._uploader.submit(
                self._progress.flush,  # a checkpoint's steps have their lines in the metrics
                partial(self._rows.write, store, step, attempt),
                partial(write_checkpoint, store, step, attempt, state, position.record()),
                partial(metrics.checkpoint_written, keys.run_name(self._run.url), stepped_at),
                partial(prune_checkpoints, store, self._run.spec.train.keep_checkpoints, attempt),
                size=num_bytes(state.tensors),
                may_be_dropped=True,
            )

    def best(self, position: Position) -> None:
        self._delta(position, keys.BEST)

    def finish(self, position: Position, reason: str) -> None:
        """The run has succeeded: its last delta, then the result, after everything else."""
        self._delta(position, keys.LAST, *([] if position.best_step else [keys.BEST]))
        if self._world.rank == 0:
            self._uploader.finish()
            self._progress.close("succeeded")
            self._keep_log()
            finish = partial(
                self._run.finish,
                "succeeded",
                reason,
                steps=position.step,
                scores={
                    "eval_loss": position.best_loss if position.best_step else None,
                    "best_step": position.best_step,
                    "eval_digest": self._eval_digest(),
                },
                **self._record(),
            )
            patiently(finish)

    def fail(self, position: Position, reason: str) -> None:
        """The run ends for good, its checkpoint is in the store."""
        if self._world.rank == 0:
            self._uploader.finish()
            self._progress.close("failed")
            self._keep_log()
            patiently(partial(self._run.finish, "failed", reason, steps=position.step, **self._record()))

    def suspend(self) -> None:
        """The run goes on later, from the checkpoint that the loop has just written."""
        if self._world.rank == 0:
            self._uploader.finish()
            self._progress.close("stopped")
            self._keep_log()

    def _delta(self, position: Position, *pointers: str) -> None:
        weights = self._engine.trained_weights()
        if self._world.rank == 0:
            task = partial(self._write_delta, weights, position.record(), pointers)
            self._uploader.submit(task, size=num_bytes(weights))

    def _write_delta(self, weights: dict[str, Tensor], position: dict[str, Any], pointers: tuple[str, ...]) -> None:
        run, step = self._run, position["step"]
        prefix = keys.delta_prefix(step, self._attempt)
        if prefix != self._newest_delta:
            with tempfile.TemporaryDirectory(prefix="cpmbee-delta-") as name:
                self._fill_folder(Path(name), weights, position)
                upload_delta(run.store, prefix, Path(name))
                if keys.BEST in pointers and self._exports.best is not None:
                    draft = self._exports.best.with_name(f".{self._exports.best.name}.draft")
                    shutil.copy(Path(name) / f"{run.spec.train.save_name}.pt", draft)
                    draft.replace(self._exports.best)
            self._newest_delta = prefix
        for pointer in pointers:
            move_pointer(run.store, pointer, {"step": step, "prefix": prefix}, self._attempt)
        prune_deltas(run.store, run.spec.train.keep_checkpoints, self._attempt)

    def _fill_folder(self, folder: Path, weights: dict[str, Tensor], position: dict[str, Any]) -> None:
        run, step = self._run, position["step"]
        is_delta = run.spec.train.use_delta
        manifest = {
            "run": run.url,
            "step": step,
            "attempt": self._attempt,
            "kind": "lora" if is_delta else "full",
            "base_digest": self._base_digest,
            "spec_digest": spec_digest(run.spec),
            "data_digest": documents.digest(run.data()),
            "scores": {
                "eval_loss": position["best_loss"] if position["best_step"] == step else None,
                "eval_digest": self._eval_digest(),
            },
            "created_at": documents.now(),
        }
        if is_delta:
            manifest |= run.spec.lora.model_dump(mode="json", include={"r", "alpha", "modules"})
        if not is_delta:  # with these it is a model folder
            shutil.copy(self._model.config, folder / CONFIG)
            shutil.copy(self._model.vocab, folder / VOCABULARY)
        save_delta_folder(folder, weights, manifest, save_name=run.spec.train.save_name)

    def _record(self) -> dict[str, Any]:
        names = ("cpmbee-job", "torch", "opendelta", "safetensors")
        return {
            "attempts": self._attempt,
            "world_size": self._world.size,
            "duration_s": round(time.time() - patiently(partial(first_start, self._run.store)), 1),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
            "digests": {
                "spec": spec_digest(self._run.spec),
                "data": documents.digest(patiently(self._run.data)),
                "base": self._base_digest,
            },
        }
