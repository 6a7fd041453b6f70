"""The progress report of rank 0: metrics.jsonl, status.json, TensorBoard events, and the terminal."""

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from torch.utils.tensorboard import SummaryWriter

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, NotFoundError, RefusedError, StoreError
from cpmbee_job.process import activity, contract
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import require_newest
from cpmbee_job.store.base import Store
from cpmbee_job.store.retry import with_retries
from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output.progress import Metered
from cpmbee_job.train.output.terminal import ProgressLine

log = logging.getLogger(__name__)

FLUSH_INTERVAL = 5.0
"""Seconds between writes of metrics.jsonl and status.json."""


class Journal(Metered):
    """Keeps the metrics that an earlier attempt wrote until `start_step`; later steps are repeated.

    A thread rewrites metrics.jsonl and status.json every few seconds, even if nothing has changed: the status is the
    run's heartbeat. Once a newer attempt has been claimed, `step` raises `RefusedError`.
    """

    def __init__(
        self, attempt: Attempt, *, start_step: int, total_steps: int, flush_interval: float = FLUSH_INTERVAL
    ) -> None:
        super().__init__(attempt, total_steps)
        self._store, self._attempt, self._exports = attempt.run.store, attempt.number, attempt.exports
        self._task_name = attempt.run.spec.train.task_name
        self._start_step, self._total_steps = start_step, total_steps
        self._flush_interval = flush_interval
        self._began = self._last_step_at = time.monotonic()
        self._lines = _kept_lines(self._store, start_step)
        self._status: dict[str, Any] = {
            "state": "running",
            "attempt": attempt.number,
            "world_size": attempt.world.size,
            "pod": contract.pod_name(),
            "step": start_step,
            "total_steps": total_steps,
            "stepped_at": documents.now(),
        }
        self._lock = threading.Lock()
        """Of `_lines` and `_status`."""
        self._flush_lock = threading.Lock()
        self._etags: dict[str, str | None] = {}
        self._refused: RefusedError | None = None
        self._closed = threading.Event()
        self._progress_line = ProgressLine(total_steps, start_step)
        self._exit = contextlib.ExitStack()
        self._events = self._exports.tensorboard or Path(
            self._exit.enter_context(tempfile.TemporaryDirectory(prefix="cpmbee-tensorboard-"))
        )
        self._tensorboard = SummaryWriter(str(self._events), purge_step=start_step + 1)
        for line in self._lines.values():  # the events of a killed attempt are lost
            self._add_scalars(json.loads(line))
        threading.Thread(target=self._keep_flushing, name="journal", daemon=True).start()

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None:
        super().step(step, epoch, learning_rate, result)
        if self._refused is not None:
            raise self._refused
        now = time.monotonic()
        tokens_per_s = result.tokens / max(now - self._last_step_at, 1e-9)
        self._last_step_at = now
        eta = (now - self._began) / (step - self._start_step) * (self._total_steps - step)
        line = {
            "event": "step",
            "step": step,
            "epoch": epoch,
            "attempt": self._attempt,
            "loss": result.loss,
            "lr": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": result.tokens,
            "target_tokens": result.target_tokens,
            "tokens_per_s": round(tokens_per_s, 1),
            "loss_scale": result.loss_scale,
        }
        with self._lock:
            self._lines["step", step] = json.dumps(line)
            self._status |= {
                "step": step,
                "epoch": epoch,
                "loss": result.loss,
                "tokens_per_s": round(tokens_per_s, 1),
                "progress": round(step / self._total_steps, 4),
                "eta_s": round(eta),
                "stepped_at": documents.now(),
            }
        self._add_scalars(line)
        self._progress_line.step(step, epoch, result.loss, tokens_per_s, eta)

    def evaluation(self, step: int, result: EvalResult, is_best: bool) -> None:
        super().evaluation(step, result, is_best)
        line = {"event": "eval", "step": step, "attempt": self._attempt, "loss": result.loss}
        line |= {"target_tokens": result.target_tokens, "best": is_best}
        with self._lock:
            self._lines["eval", step] = json.dumps(line)
            self._status["stepped_at"] = documents.now()
            if is_best:
                self._status["best"] = {"step": step, "loss": result.loss}
        self._add_scalars(line)
        self.log(f"step {step}: eval loss {result.loss:.4f}{' (best)' if is_best else ''}")
        self._last_step_at = time.monotonic()

    def _add_scalars(self, line: Mapping[str, Any]) -> None:
        """Add the numbers of a line of metrics.jsonl to TensorBoard."""
        scalars = {"Loss/eval": line["loss"]}
        if line["event"] == "step":
            scalars = {"Loss/train": line["loss"], "LearningRate": line["lr"], "GradNorm": line["grad_norm"]}
            scalars[f"Loss/train/{self._task_name}"] = line["loss"]
        for tag, value in scalars.items():
            self._tensorboard.add_scalar(tag, value, line["step"])

    def log(self, message: str) -> None:
        log.info("%s", message)

    def flush(self) -> None:
        with self._flush_lock:
            with self._lock:
                metrics = "".join(line + "\n" for line in self._lines.values())
                status = {**self._status, "updated_at": documents.now()}
            if self._exports.metrics is not None:
                self._exports.metrics.write_text(metrics, encoding="utf-8")
            self._put(keys.METRICS, metrics.encode())
            self._put(keys.STATUS, documents.to_json(status))

    def close(self, state: str) -> None:
        self._closed.set()
        self._progress_line.close()
        with self._lock:
            self._status["state"] = state
            self._status.pop("eta_s", None)
        self._tensorboard.close()
        with self._exit:
            with_retries(self.flush)
            if self._exports.tensorboard is None:
                for path in self._events.iterdir():
                    with_retries(partial(self._store.upload, path, f"tensorboard/{self._attempt:05d}/{path.name}"))

    def abandon(self) -> None:
        self._closed.set()
        self._progress_line.close()
        with self._exit:
            self._tensorboard.close()

    def _keep_flushing(self) -> None:
        activity.ignore_this_thread()
        while not self._closed.wait(self._flush_interval):
            try:
                self.flush()
            except StoreError as error:
                log.warning("cannot write the metrics, will retry: %s", error.message)
            except RefusedError as error:
                self._refused = error  # raised in the training thread
                return

    def _put(self, key: str, data: bytes) -> None:
        """Overwrite an object of this attempt. Raises `RefusedError` if a newer attempt has been claimed."""
        while True:
            try:
                if key not in self._etags:
                    found = self._store.info(key)
                    require_newest(self._store, self._attempt)  # after reading the ETag: a newer attempt changes it
                    self._etags[key] = None if found is None else found.etag
                etag = self._etags[key]
                self._etags[key] = (
                    self._store.put(key, data, if_none_match=True)
                    if etag is None
                    else self._store.put(key, data, if_match=etag)
                )
            except ConflictError:
                del self._etags[key]  # another attempt's write, or this one's, if its response was lost
            else:
                return


class _Line(documents.Document):
    """The fields of a line of metrics.jsonl that the next attempt reads."""

    step: documents.Number
    loss: float


class _StepLine(_Line):
    event: Literal["step"]
    lr: float
    grad_norm: float


class _EvalLine(_Line):
    event: Literal["eval"]


_LINE: TypeAdapter[_StepLine | _EvalLine] = TypeAdapter(_StepLine | _EvalLine)


def _kept_lines(store: Store, start_step: int) -> dict[tuple[str, int], str]:
    """Return the lines of metrics.jsonl until `start_step`, by event and step. Corrupt lines are dropped."""
    try:
        lines = store.get(keys.METRICS).decode(errors="replace").splitlines()
    except NotFoundError:
        return {}
    kept: dict[tuple[str, int], str] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            record = _LINE.validate_json(line)
            if record.step <= start_step:
                kept[record.event, record.step] = line
    return kept
