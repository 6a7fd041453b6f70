"""One rank of a run, started by torchrun: `torchrun ... -m cpmbee_job.train.worker RUN_URL`.

Joins the world, claims an attempt, then: load, resume, train, publish, end.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cpmbee_job.data.dataset.order import Order, SetShare, shares
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.errors import CancelledError, CpmbeeError, DiskError, ExitCode, InvalidError, RefusedError
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.process import parent_watch
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import newest_attempt, record_begin
from cpmbee_job.run.checkpoints import StoredCheckpoint
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.s3.traffic import Observer, observe
from cpmbee_job.store.urls import open_store
from cpmbee_job.train.attempt import NO_EXPORTS, Attempt, Exports
from cpmbee_job.train.batches import Batches, EvalBatches, RankLoader, Vocabulary
from cpmbee_job.train.engine.build import build_engine, plan_for
from cpmbee_job.train.engine.deterministic_engine import use_deterministic_algorithms
from cpmbee_job.train.failures import FAILURE_ENV, LOST_PEER, PEER_STOPPED, Failure, record_failure
from cpmbee_job.train.loop import train
from cpmbee_job.train.loop_state import LoopState
from cpmbee_job.train.output import metrics
from cpmbee_job.train.output.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from cpmbee_job.train.output.journal import Journal
from cpmbee_job.train.output.progress import Metered, Progress
from cpmbee_job.train.output.publish import Provenance, Publisher
from cpmbee_job.train.output.terminal import log_to_console
from cpmbee_job.train.stop_request import StopRequest
from cpmbee_job.train.watchdog import Watchdog
from cpmbee_job.train.world import World

INIT_TIMEOUT = 300.0
"""Seconds from the start of the first rank to that of the last: torch may be loaded from a slow disk."""

MORE_MEMORY = "lower train.batch_size or train.max_length, raise train.recompute_layers, or set train.layout: sharded"

log = logging.getLogger("cpmbee_job.train.worker")  # `__name__` is `__main__` here


def main() -> None:
    """Run the worker of one rank.

    Exits with 0 after a permanent failure too: otherwise torchrun would restart the worker. The entrypoint reads the
    failure.
    """
    exit_with_torchrun()
    parent_watch.watch(parent_watch.parent(), _on_entrypoint_exit)
    log_to_console()
    observe(Observer(*metrics.s3_counters(keys.run_name(sys.argv[1]))))
    known = Failure.in_container()
    if known is not None and known.permanent:
        return
    try:
        run = Run.open(sys.argv[1], StorageSpec.from_environment())
        if run.result() is not None:
            return
        failure = work(run, init_world(), lambda: fetch_model(run.spec.model, run.storage))
    except CpmbeeError as error:
        log.error("error: %s", error)
        failure = Failure(str(error), 0, isinstance(error, InvalidError | DiskError), error.exit_code)
        failure.write()
    if failure is not None and not failure.permanent:
        sys.exit(1)


def exit_with_torchrun() -> None:
    """Exit when torchrun is killed: its workers would train on beside those that replace them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()
        # If there is an entrypoint, torchrun is never process 1, which adopts orphans.
        if parent_watch.parent() is not None and parent in (1, parent_watch.parent()):
            os._exit(1)
        parent_watch.watch(parent)


def _on_entrypoint_exit() -> None:
    """Exit, and delete the folder that the entrypoint can no longer delete."""
    if place := os.environ.get(FAILURE_ENV):
        shutil.rmtree(Path(place).parent, ignore_errors=True)
    os._exit(1)


def init_world() -> World:
    """Join the world. Exits the process if a peer has died before it joined, which torch would wait for."""
    failure = Failure("not all ranks joined the world", 0, permanent=False, exit_code=ExitCode.INTERNAL)
    watchdog = Watchdog(INIT_TIMEOUT, failure.write)
    try:
        return World.init()
    finally:
        watchdog.stop()


def work(run: Run, world: World, find_model: Callable[[], ModelFiles], exports: Exports = NO_EXPORTS) -> Failure | None:
    """Train `run` as a rank of `world` until it ends or has to stop. Return the failure, if any."""
    worker = _Worker(run, world, exports)
    try:
        worker.execute(find_model)
    except CpmbeeError as error:
        return worker.fail(error)
    except torch.OutOfMemoryError as error:
        return worker.fail(CpmbeeError(f"out of GPU memory: {error}", hint=MORE_MEMORY))
    except Exception as error:
        if _is_lost_peer(error):
            return worker.fail(CpmbeeError(LOST_PEER))
        log.exception("internal error")
        return worker.fail(CpmbeeError(f"{type(error).__name__}: {error}"))
    finally:
        worker.watchdog.leave_peers()
    return None


class _Worker:
    """This rank's part in one attempt."""

    def __init__(self, run: Run, world: World, exports: Exports) -> None:
        self.run, self.world = run, world
        self.state = LoopState()
        self.phase = "loading"
        self.progress = Progress()
        connect_peers = world.shared_counter if world.size > 1 else None
        self.watchdog = Watchdog(run.spec.train.stall_timeout, self._record_stall, connect_peers)
        self.stop = StopRequest()
        self.attempt = Attempt.claim(run, world, exports)
        metrics.ATTEMPT.labels(self.attempt.run_name).set(self.attempt.number)

    def execute(self, find_model: Callable[[], ModelFiles]) -> None:
        run, spec, world, attempt = self.run, self.run.spec, self.world, self.attempt

        # Load
        data = run.data()
        batch_size = 1 if spec.train.deterministic else spec.train.batch_size
        vocabulary = Vocabulary(**data["vocabulary"])
        dataset = _open_dataset(run, data["train"])
        loader = RankLoader(dataset, vocabulary, world.rank, world.size, batch_size, world.device)
        eval_loader = None if data["eval"] is None else replace(loader, dataset=_open_dataset(run, data["eval"]))
        mixture = _mixture(data["train"]["sets"])
        order = Order(dataset.num_rows, spec.global_batch_size, spec.train.seed, spec.train.drop_last, mixture)
        total_steps = min(order.steps_per_epoch * spec.train.epochs, spec.train.max_steps or sys.maxsize)
        if spec.train.deterministic:
            use_deterministic_algorithms(world.device)
        files = world.on_all_ranks(find_model)
        plan = plan_for(spec, files, world)
        engine = build_engine(run, files, world, plan)

        # Resume
        checkpoint = self._newest_checkpoint()
        resumed = ""
        if checkpoint is not None:
            engine.load_state(checkpoint.engine)
            self.state = LoopState.from_record(checkpoint.progress)
            resumed = f", resuming after step {self.state.step}"
            if checkpoint.stored.modified is not None:
                metrics.CHECKPOINT.labels(attempt.run_name).set(checkpoint.stored.modified)

        # Train
        if world.rank == 0:
            self.progress = Journal(attempt, start_step=self.state.step, total_steps=total_steps)
        else:
            self.progress = Metered(attempt, total_steps)
        self.progress.log(
            f"attempt {attempt.number}: {dataset.num_rows} packed rows, {total_steps} steps, {world.size} processes, "
            f"{plan}{resumed}"
        )
        provenance = Provenance(files, engine.model.base_digest, None if eval_loader is None else eval_loader.dataset)
        resumed_from = None if checkpoint is None else checkpoint.pointer
        publisher = Publisher(attempt, engine, self.progress, provenance, resumed_from)
        self.phase = "training"
        self.stop.deadline = run.deadline()
        outcome = train(
            spec.train,
            self.state,
            engine=engine,
            batches=Batches(loader, order, first=self.state.step + 1, last=total_steps),
            eval_batches=None if eval_loader is None else EvalBatches(eval_loader),
            total_steps=total_steps,
            saver=publisher,
            progress=self.progress,
            wants_stop=self.stop.is_set,
        )

        # Publish
        self.phase = "publishing"
        if outcome != "stopped":
            publisher.succeed(self.state, outcome)
        elif self.stop.deadline_has_passed():
            publisher.fail(self.state, run.deadline_reason)
        else:
            publisher.suspend()
            Failure(PEER_STOPPED, self.state.step, permanent=False, exit_code=CancelledError.exit_code).write()

        # End
        if world.rank != 0:
            attempt.upload_log()
        world.destroy()

    def _newest_checkpoint(self) -> Checkpoint | None:
        """Return the same checkpoint on all ranks. Rank 0 chooses, because an earlier attempt may still write some."""
        own: list[Checkpoint] = []

        def choose() -> StoredCheckpoint | None:
            newest = newest_checkpoint(self.run.store, warn=log.warning)
            record_begin(self.run.store, self.attempt.number, None if newest is None else newest.pointer)
            if newest is None:
                return None
            own.append(newest)
            return newest.stored

        stored = self.world.broadcast_object(choose)
        if stored is None:
            return None
        return own[0] if own else read_checkpoint(self.run.store, stored)

    def fail(self, error: CpmbeeError) -> Failure:
        """Record the failure. Fail the run too if another attempt cannot help."""
        # Another attempt owns the run, or the disk is full: nothing can be written.
        cannot_write = isinstance(error, RefusedError | DiskError)
        permanent = cannot_write or isinstance(error, InvalidError)
        failure = Failure(str(error), self.state.step, permanent, error.exit_code)
        failure.write()
        log.error("error: %s", error)
        if cannot_write:
            self.progress.abandon()
            return failure
        try:
            if newest_attempt(self.run.store) > self.attempt.number:
                self.progress.abandon()
                self.attempt.upload_log()
                return failure
            is_repeated = record_failure(self.run, self.attempt.number, failure)
            if is_repeated and not permanent:
                limit = self.run.spec.train.max_failures
                error = CpmbeeError(f"failed {limit} times at the same step: {error.message}", hint=error.hint)
            if is_repeated or permanent:
                self.run.fail(error, steps=self.state.step, attempts=self.attempt.number)
            self.progress.close("failed" if is_repeated or permanent else "interrupted")
            self.attempt.upload_log()
        except CpmbeeError as problem:
            log.warning("cannot record the failure: %s", problem)
        return failure

    def _record_stall(self) -> None:
        timeout = self.run.spec.train.stall_timeout
        reason = f"no progress for {timeout:.0f} s while {self.phase}: ended by the watchdog"
        Failure(reason, self.state.step, permanent=False, exit_code=ExitCode.STALLED).write()


def _open_dataset(run: Run, split: dict[str, Any]) -> PackedDataset:
    """Open the packed rows of all datasets of a split."""
    folders = [keys.prepared_url(run.spec.output, dataset["prepared"]) for dataset in split["sets"]]
    stores = [open_store(folder, run.storage) for folder in folders]
    return PackedDataset.open(*stores, cache=default_cache_dir() / "prepared")


def _mixture(sets: list[dict[str, Any]]) -> tuple[SetShare, ...]:
    """Return the share of each dataset in an epoch; empty if the datasets have no weights."""
    if sets[0]["weight"] is None:
        return ()
    rows, examples, weights = ([dataset[key] for dataset in sets] for key in ("rows", "examples", "weight"))
    return shares(rows, examples, weights)


def _is_lost_peer(error: Exception) -> bool:
    """Return whether a collective failed because another rank is gone. NCCL has an exception class, gloo a message."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


if __name__ == "__main__":
    main()
