"""One rank of a run, as torchrun starts it: `torchrun ... -m cpmbee_job.train.worker RUN_URL`.

join the world -> claim an attempt -> load data and model -> resume -> train -> publish -> wait for all
"""

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from cpmbee_job.data.dataset.eval_digest import dataset_digest
from cpmbee_job.data.dataset.order import Order, SetShare, shares
from cpmbee_job.data.dataset.shards import RowDataset
from cpmbee_job.errors import CancelledError, CpmbeeError, DiskError, ExitCode, InvalidError, RefusedError
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.process import contract, parent_watch
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt, newest_attempt, record_begin
from cpmbee_job.run.checkpoints import StoredCheckpoint
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.cache import default_cache_dir
from cpmbee_job.store.retry import patiently
from cpmbee_job.store.s3.traffic import observe
from cpmbee_job.store.urls import open_store
from cpmbee_job.train.batches import AllRows, Batches, Vocabulary
from cpmbee_job.train.engine.build import build_engine, plan_for
from cpmbee_job.train.engine.deterministic_engine import use_deterministic_algorithms
from cpmbee_job.train.failures import FAILURE_ENV, LOST_PEER, PEER_STOPPED, Failure, log_place, record_failure
from cpmbee_job.train.loop import Position, train
from cpmbee_job.train.output import metrics
from cpmbee_job.train.output.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from cpmbee_job.train.output.exports import NO_EXPORTS, Exports
from cpmbee_job.train.output.metered import Metered
from cpmbee_job.train.output.progress import Journal, Progress, Silent, log_to_console
from cpmbee_job.train.output.publish import Publisher
from cpmbee_job.train.stop_request import StopRequest
from cpmbee_job.train.watchdog import Watchdog
from cpmbee_job.train.world import World

LONGEST_FORMING = 300.0
"""Seconds from the first rank's start to the last one's: torch may have to come from a slow disk."""

MORE_MEMORY = "lower train.batch_size or train.max_length, raise train.recompute_layers, or set train.layout: sharded"

log = logging.getLogger("cpmbee_job.train.worker")  # also where this module is __main__


def main() -> None:
    """Entry point of torchrun's processes. Ends with 0 also where a permanent fault is on record: torchrun would start
    the process again, and its supervisor knows."""
    end_with_torchrun()
    parent_watch.end_with(parent_watch.owner(), _orphaned)
    log_to_console()
    observe(metrics.S3Traffic(keys.run_name(sys.argv[1])))
    known = Failure.here()
    if known is not None and known.permanent:
        return
    try:
        run = Run.open(sys.argv[1], StorageSpec.from_environment())
        if run.result() is not None:
            return
        failure = work(run, form_world(), lambda: fetch_model(run.spec.model, run.storage))
    except CpmbeeError as error:
        log.error("error: %s", error)
        permanent = isinstance(error, InvalidError | DiskError)
        failure = Failure(str(error), 0, permanent, error.exit_code)
        failure.write()
    if failure is not None and not failure.permanent:
        sys.exit(1)


def form_world() -> World:
    """The world that torchrun has called together. A peer that has died since would be waited for, for ever."""
    failure = Failure("not all ranks came", 0, permanent=False, exit_code=1)
    watchdog = Watchdog(LONGEST_FORMING, failure.write)
    try:
        return World.init()
    finally:
        watchdog.stop()


def end_with_torchrun() -> None:
    """A killed torchrun leaves its workers to themselves: they would train on beside those that take their place."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()
        # With an entrypoint of ours torchrun is never the first process, which inherits orphans.
        if parent_watch.owner() is not None and parent in (1, parent_watch.owner()):
            os._exit(1)
        parent_watch.end_with(parent)


def _orphaned() -> None:
    """The entrypoint was killed, so nobody else tidies up its folder."""
    if place := os.environ.get(FAILURE_ENV):
        shutil.rmtree(Path(place).parent, ignore_errors=True)
    os._exit(1)


def work(
    run: Run, world: World, locate_model: Callable[[], ModelFiles], exports: Exports = NO_EXPORTS
) -> Failure | None:
    """Take part in `run` as a rank of `world`, until it has ended or is to stop; what went wrong otherwise."""
    attempt = _Attempt(run, world)
    try:
        attempt.execute(locate_model, exports)
    except CpmbeeError as error:
        return attempt.failed(error)
    except torch.OutOfMemoryError as error:
        return attempt.failed(CpmbeeError(f"a GPU's memory is used up: {error}", hint=MORE_MEMORY))
    except Exception as error:
        if _lost_peer(error):
            return attempt.failed(CpmbeeError(LOST_PEER))
        log.exception("a fault of ours")
        return attempt.failed(CpmbeeError(f"{type(error).__name__}: {error}"))
    finally:
        attempt.watchdog.leave_peers()
    return None


class _Attempt:
    """One world's try at the run."""

    def __init__(self, run: Run, world: World) -> None:
        self.run, self.world = run, world
        self.position = Position()
        self.doing = "loading"
        peers = world.shared_counter if world.size > 1 else None
        self.watchdog = Watchdog(run.spec.train.stall_timeout, self._stalled, peers)
        self.stop = StopRequest()
        self.progress: Progress = Silent()
        self.run_name = keys.run_name(run.url)
        self.number = world.broadcast_object(lambda: claim_attempt(run.store, world.size))
        metrics.ATTEMPT.labels(self.run_name).set(self.number)
        self.log_file = _log_to_file(self.number) if world.local_rank == 0 else None

    def execute(self, locate_model: Callable[[], ModelFiles], exports: Exports) -> None:
        run, spec, world = self.run, self.run.spec, self.world

        # Data
        record = run.data()
        vocabulary = Vocabulary(**record["vocabulary"])
        dataset = _dataset(run, record["train"])
        evaluation = None if record["eval"] is None else _dataset(run, record["eval"])
        mixture = _mixture(record["train"]["sets"])
        order = Order(dataset.num_rows, spec.global_batch_size, spec.train.seed, spec.train.drop_last, mixture)
        total_steps = min(order.steps_per_epoch * spec.train.epochs, spec.train.max_steps or sys.maxsize)

        # Model
        if spec.train.deterministic:
            use_deterministic_algorithms(world.device)
        files = world.on_all_ranks(locate_model)
        plan = plan_for(spec, files, world)
        engine = build_engine(run, files, world, plan)

        # Resume
        found = self._newest_checkpoint()
        if found is not None:
            engine.load_state(found.engine)
            self.position = Position.from_record(found.progress)
            if found.modified is not None:
                metrics.CHECKPOINT.labels(self.run_name).set(found.modified)

        # Report
        if world.rank == 0:
            self.progress = Journal(
                run.store,
                attempt=self.number,
                world_size=world.size,
                start_step=self.position.step,
                total_steps=total_steps,
                task_name=spec.train.task_name,
                exports=exports,
            )
        self.progress = Metered(self.progress, self.run_name, world, total_steps)
        self.progress.say(
            f"attempt {self.number}: {dataset.num_rows} rows, {total_steps} steps, {world.size} processes, {plan}"
            + (f", going on after step {self.position.step}" if self.position.step else "")
        )
        publisher = Publisher(
            run,
            world,
            self.number,
            engine,
            self.progress,
            files,
            engine.model.base_digest,
            exports,
            found,
            lambda: None if evaluation is None else dataset_digest(evaluation),
            self._keep_log,
        )

        # Train
        self.doing = "training"
        ends_at = run.deadline()
        batch_size = 1 if spec.train.deterministic else spec.train.batch_size
        share: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "batch_size": batch_size}
        share["device"] = world.device
        outcome = train(
            spec.train,
            engine=engine,
            batches=Batches(dataset, order, vocabulary, first=self.position.step + 1, last=total_steps, **share),
            eval_batches=None if evaluation is None else AllRows(evaluation, vocabulary, **share),
            total_steps=total_steps,
            position=self.position,
            saver=publisher,
            progress=self.progress,
            control=_Control(self.stop, ends_at),
        )

        # Publish
        self.doing = "publishing"
        if outcome != "stopped":
            publisher.finish(self.position, outcome)
        elif ends_at is not None and time.time() > ends_at:
            publisher.fail(self.position, run.deadline_reason)
        else:
            publisher.suspend()
            Failure(PEER_STOPPED, self.position.step, permanent=False, exit_code=CancelledError.exit_code).write()
        if world.rank != 0:
            self._keep_log()
        world.destroy()

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The same on all ranks, so one chooses: an attempt before this one may still be writing."""
        chosen: list[Checkpoint] = []

        def choose() -> StoredCheckpoint | None:
            found = newest_checkpoint(self.run.store, warn=log.warning)
            record_begin(self.run.store, self.number, None if found is None else found.pointer)
            if found is None:
                return None
            chosen.append(found)
            return StoredCheckpoint(found.attempt, found.step, found.modified)

        manifest = self.world.broadcast_object(choose)
        if manifest is None:
            return None
        return chosen[0] if chosen else read_checkpoint(self.run.store, manifest)

    def failed(self, error: CpmbeeError) -> Failure:
        """Put the failure on record; end the run for good where another attempt can't help."""
        # The run is in other hands, or has no room: there is nothing to write.
        refused = isinstance(error, RefusedError | DiskError)
        permanent = refused or isinstance(error, InvalidError)
        failure = Failure(str(error), self.position.step, permanent, error.exit_code)
        failure.write()
        log.error("error: %s", error)
        if refused:
            self.progress.drop()
            return failure
        try:
            if newest_attempt(self.run.store) > self.number:  # the same, only that we failed before we could tell
                self.progress.drop()
                self._keep_log()
                return failure
            again = record_failure(self.run, self.number, failure)
            if again and not permanent:
                limit = self.run.spec.train.max_failures
                error = CpmbeeError(f"failed {limit} times at the same step: {error.message}", hint=error.hint)
            if again or permanent:
                self.run.fail(error, steps=self.position.step, attempts=self.number)
            self.progress.close("failed" if again or permanent else "interrupted")
            self._keep_log()
        except CpmbeeError as problem:
            log.warning("the failure could not be put on record: %s", problem)
        return failure

    def _keep_log(self) -> None:
        if self.log_file is not None:
            key = keys.log_key(contract.pod_name(), self.number)
            self.log_file.seek(0)
            patiently(partial(self.run.store.put, key, self.log_file.read().encode()))
            if (file := log_place(self.number)) is not None:
                file.unlink(missing_ok=True)  # what is left there is for the entrypoint to keep

    def _stalled(self) -> None:
        timeout = self.run.spec.train.stall_timeout
        reason = f"no progress for {timeout:.0f} s while {self.doing}: ended by the watchdog"
        Failure(reason, self.position.step, permanent=False, exit_code=ExitCode.STALLED).write()


def _log_to_file(attempt: int) -> IO[str]:
    """Have this process's log in a file too, to be kept with the run: where an entrypoint waits for us, in one that it
    finds when we are killed."""
    place = log_place(attempt)
    # Open as long as we are.
    file: IO[str] = place.open("w+", encoding="utf-8") if place else tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    return file


def _dataset(run: Run, split: dict[str, Any]) -> RowDataset:
    """The rows of all data sets of a split."""
    folders = [keys.prepared_url(run.spec.output, one["prepared"]) for one in split["sets"]]
    stores = [open_store(folder, run.storage) for folder in folders]
    return RowDataset.open(*stores, cache=default_cache_dir() / "prepared")


def _mixture(sets: list[dict[str, Any]]) -> tuple[SetShare, ...]:
    """What weights make of an epoch; nothing where there are none."""
    if sets[0]["weight"] is None:
        return ()
    rows, examples, weights = ([one[key] for one in sets] for key in ("rows", "examples", "weight"))
    return shares(rows, examples, weights)


def _lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank has gone: NCCL has a class for it, gloo only words."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class _Control:
    """The loop's `Control`: signals and the deadline."""

    def __init__(self, stop: StopRequest, deadline: float | None) -> None:
        self._stop, self._deadline = stop, deadline

    def wants_stop(self) -> bool:
        return self._stop.requested or (self._deadline is not None and time.time() > self._deadline)


if __name__ == "__main__":
    main()
