"""Saves a run in the store: checkpoints, deltas, and the result. Rank 0 writes, in the background."""

import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from cpmbee_job import documents
from cpmbee_job.data.dataset.eval_digest import dataset_digest
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.model.lora import save_delta_folder
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import CheckpointPointer, first_start, move_pointer, require_newest
from cpmbee_job.run.checkpoints import prune_checkpoints
from cpmbee_job.run.deltas import prune_deltas, upload_delta
from cpmbee_job.run.identity import spec_digest
from cpmbee_job.run.model_files import CONFIG, VOCABULARY
from cpmbee_job.run.rows import RowRecorder
from cpmbee_job.store.retry import with_retries
from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.interface import Engine
from cpmbee_job.train.loop_state import LoopState
from cpmbee_job.train.output import metrics
from cpmbee_job.train.output.checkpoint import write_checkpoint
from cpmbee_job.train.output.progress import Progress
from cpmbee_job.train.output.uploader import Uploader, num_bytes


@dataclass(frozen=True)
class Provenance:
    """What a delta was trained on and evaluated with, for its manifest."""

    model: ModelFiles
    base_digest: str
    eval_dataset: PackedDataset | None

    @cached_property
    def eval_digest(self) -> str | None:
        """Takes a while for many examples, so only the uploader's thread asks for it."""
        return None if self.eval_dataset is None else dataset_digest(self.eval_dataset)


class Publisher:
    """The loop's `Saver`. Rank 0 writes; the other ranks only take part in collectives."""

    def __init__(
        self,
        attempt: Attempt,
        engine: Engine,
        progress: Progress,
        provenance: Provenance,
        resumed_from: CheckpointPointer | None = None,
    ) -> None:
        self._attempt, self._run, self._store = attempt, attempt.run, attempt.run.store
        self._engine, self._progress, self._provenance = engine, progress, provenance
        self._is_rank_0 = attempt.world.rank == 0
        self._rows = RowRecorder(attempt.world.gather_object, resumed_from)
        self._uploader = Uploader()
        self._newest_delta = ""

    def record_rows(self, batch: Batch) -> None:
        self._rows.note(batch.step, batch.epoch, batch.own_rows)

    def save_checkpoint(self, state: LoopState) -> None:
        stepped_at = time.time()
        engine_state = self._engine.state()
        self._rows.gather()
        if self._is_rank_0:
            store, step, attempt = self._store, state.step, self._attempt.number
            self._uploader.submit(
                self._progress.flush,  # the metrics must contain the checkpoint's steps
                partial(self._rows.write, store, step, attempt),
                partial(write_checkpoint, store, step, attempt, engine_state, state.record()),
                partial(metrics.checkpoint_written, self._attempt.run_name, stepped_at),
                partial(prune_checkpoints, store, self._run.spec.train.keep_checkpoints, attempt),
                size=num_bytes(engine_state.tensors),
                may_be_dropped=True,
            )

    def save_best(self, state: LoopState) -> None:
        self._save_delta(state, keys.BEST)

    def succeed(self, state: LoopState, reason: str) -> None:
        """Save the last delta, then the result; without evaluations the last delta is the best."""
        self._save_delta(state, keys.LAST, *([] if state.best_step else [keys.BEST]))
        if self._is_rank_0:
            self._close("succeeded")
            scores = {
                "eval_loss": state.best_loss if state.best_step else None,
                "best_step": state.best_step,
                "eval_digest": self._provenance.eval_digest,
            }
            fields = {"steps": state.step, "scores": scores, **self._result_fields()}
            with_retries(partial(self._run.finish, "succeeded", reason, **fields))

    def fail(self, state: LoopState, reason: str) -> None:
        """Save a failed result; the loop has saved a checkpoint."""
        if self._is_rank_0:
            self._close("failed")
            with_retries(partial(self._run.finish, "failed", reason, steps=state.step, **self._result_fields()))

    def suspend(self) -> None:
        """Stop without a result; the loop has saved a checkpoint, from which the run can be resumed."""
        if self._is_rank_0:
            self._close("stopped")

    def _close(self, state: str) -> None:
        """Write everything but the result, which must be the last object."""
        self._uploader.finish()
        self._progress.close(state)
        self._attempt.upload_log()

    def _save_delta(self, state: LoopState, *pointers: str) -> None:
        weights = self._engine.trained_weights()
        if self._is_rank_0:
            task = partial(self._write_delta, weights, state.record(), pointers)
            self._uploader.submit(task, size=num_bytes(weights))

    def _write_delta(self, weights: dict[str, Tensor], state: dict[str, Any], pointers: tuple[str, ...]) -> None:
        run, step, attempt = self._run, state["step"], self._attempt.number
        prefix = keys.delta_prefix(step, attempt)
        require_newest(run.store, attempt)
        if prefix != self._newest_delta:
            with tempfile.TemporaryDirectory(prefix="cpmbee-delta-") as name:
                self._fill_delta_folder(Path(name), weights, state)
                upload_delta(run.store, prefix, Path(name))
                export = self._attempt.exports.best
                if keys.BEST in pointers and export is not None:
                    draft = export.with_name(f".{export.name}.draft")
                    shutil.copy(Path(name) / f"{run.spec.train.save_name}.pt", draft)
                    draft.replace(export)
            self._newest_delta = prefix
        for pointer in pointers:
            move_pointer(run.store, pointer, {"step": step, "prefix": prefix}, attempt)
        prune_deltas(run.store, run.spec.train.keep_checkpoints, attempt)

    def _fill_delta_folder(self, folder: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        run, step = self._run, state["step"]
        is_delta = run.spec.train.use_delta
        manifest = {
            "run": run.url,
            "step": step,
            "attempt": self._attempt.number,
            "kind": "lora" if is_delta else "full",
            "base_digest": self._provenance.base_digest,
            "spec_digest": spec_digest(run.spec),
            "data_digest": documents.digest(run.data()),
            "scores": {
                "eval_loss": state["best_loss"] if state["best_step"] == step else None,
                "eval_digest": self._provenance.eval_digest,
            },
            "created_at": documents.now(),
        }
        if is_delta:
            manifest |= run.spec.lora.model_dump(mode="json", include={"r", "alpha", "modules"})
        else:  # these make it a model folder
            shutil.copy(self._provenance.model.config, folder / CONFIG)
            shutil.copy(self._provenance.model.vocab, folder / VOCABULARY)
        save_delta_folder(folder, weights, manifest, save_name=run.spec.train.save_name)

    def _result_fields(self) -> dict[str, Any]:
        packages = ("cpmbee-job", "torch", "opendelta", "safetensors")
        return {
            "attempts": self._attempt.number,
            "world_size": self._attempt.world.size,
            "duration_s": round(time.time() - with_retries(partial(first_start, self._store)), 1),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            "digests": {
                "spec": spec_digest(self._run.spec),
                "data": documents.digest(with_retries(self._run.data)),
                "base": self._provenance.base_digest,
            },
        }
