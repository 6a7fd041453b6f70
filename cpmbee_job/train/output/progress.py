"""What rank 0 tells the world while it trains: metrics.jsonl, status.json, TensorBoard, a line on the terminal."""

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import rich.progress
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from torch.utils.tensorboard import SummaryWriter

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, NotFoundError, RefusedError, StoreError
from cpmbee_job.process import activity, contract
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import require_newest
from cpmbee_job.store.base import Store
from cpmbee_job.store.retry import patiently
from cpmbee_job.train.engine.interface import EvalResult, StepResult
from cpmbee_job.train.output.exports import Exports

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False, soft_wrap=True)

FLUSH_INTERVAL = 5.0
"""Seconds between writes of the living objects."""
TERMINAL_INTERVAL = 10.0
"""Seconds between lines where stderr is no terminal."""


class Progress(Protocol):
    """What the loop reports to."""

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None: ...

    def evaluation(self, step: int, result: EvalResult, best: bool) -> None: ...

    def say(self, message: str) -> None: ...

    def flush(self) -> None:
        """Bring all that has been reported into the store, now."""

    def close(self, state: str) -> None: ...

    def drop(self) -> None:
        """End without another word to the store, which is in other hands."""


class Silent:
    """The ranks that say nothing."""

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None: ...

    def evaluation(self, step: int, result: EvalResult, best: bool) -> None: ...

    def say(self, message: str) -> None: ...

    def flush(self) -> None: ...

    def close(self, state: str) -> None: ...

    def drop(self) -> None: ...


class Journal:
    """Rank 0's `Progress`. Metrics of steps after `start_step` that an earlier attempt left are dropped: those steps
    are done again."""

    def __init__(
        self,
        store: Store,
        *,
        attempt: int,
        world_size: int,
        start_step: int,
        total_steps: int,
        task_name: str,
        exports: Exports,
        flush_interval: float = FLUSH_INTERVAL,
    ) -> None:
        self._store = store
        self._flush_interval = flush_interval
        self._attempt = attempt
        self._total = total_steps
        self._start = start_step
        self._began = self._last_step_at = time.monotonic()
        self._lines = _kept_lines(store, start_step)
        self._refused: RefusedError | None = None
        self._etags: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._done = threading.Event()
        self._status: dict[str, Any] = {
            "state": "running",
            "attempt": attempt,
            "world_size": world_size,
            "pod": contract.pod_name(),
            "step": start_step,
            "total_steps": total_steps,
            "stepped_at": documents.now(),
        }
        self._terminal = _Terminal(total_steps, start_step)
        self._exports = exports
        self._task_name = task_name
        self._exit = contextlib.ExitStack()
        self._events = exports.tensorboard or Path(
            self._exit.enter_context(tempfile.TemporaryDirectory(prefix="cpmbee-tensorboard-"))
        )
        self._tensorboard = SummaryWriter(str(self._events), purge_step=start_step + 1)
        for line in self._lines.values():  # events of an attempt that was killed are lost
            self._draw(json.loads(line))
        threading.Thread(target=self._keep_flushing, name="journal", daemon=True).start()

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None:
        if self._refused is not None:
            raise self._refused
        at = time.monotonic()
        rate = result.tokens / max(at - self._last_step_at, 1e-9)
        self._last_step_at = at
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
            "tokens_per_s": round(rate, 1),
            "loss_scale": result.loss_scale,
        }
        eta = (at - self._began) / (step - self._start) * (self._total - step)
        with self._lock:
            self._lines["step", step] = json.dumps(line)
            self._status |= {"step": step, "epoch": epoch, "loss": result.loss, "tokens_per_s": round(rate, 1)}
            self._status |= {
                "progress": round(step / self._total, 4),
                "eta_s": round(eta),
                "stepped_at": documents.now(),
            }
        self._draw(line)
        self._terminal.step(step, epoch, result.loss, rate, eta)

    def evaluation(self, step: int, result: EvalResult, best: bool) -> None:
        line = {"event": "eval", "step": step, "attempt": self._attempt, "loss": result.loss}
        line |= {"target_tokens": result.target_tokens, "best": best}
        with self._lock:
            self._lines["eval", step] = json.dumps(line)
            self._status["stepped_at"] = documents.now()
            if best:
                self._status["best"] = {"step": step, "loss": result.loss}
        self._draw(line)
        log.info("step %d: eval loss %.4f%s", step, result.loss, " (best)" if best else "")
        self._last_step_at = time.monotonic()

    def _draw(self, line: Mapping[str, Any]) -> None:
        """A line of the metrics, as TensorBoard shows it."""
        scalars = {"Loss/eval": line["loss"]}
        if line["event"] == "step":
            scalars = {"Loss/train": line["loss"], "LearningRate": line["lr"], "GradNorm": line["grad_norm"]}
            scalars[f"Loss/train/{self._task_name}"] = line["loss"]
        for tag, value in scalars.items():
            self._tensorboard.add_scalar(tag, value, line["step"])

    def say(self, message: str) -> None:
        log.info("%s", message)

    def flush(self) -> None:
        with self._flushing:
            with self._lock:
                metrics = "".join(line + "\n" for line in self._lines.values())
                status = {**self._status, "updated_at": documents.now()}
            if self._exports.metrics is not None:
                self._exports.metrics.write_text(metrics, encoding="utf-8")
            self._put(keys.METRICS, metrics.encode())
            self._put(keys.STATUS, documents.to_json(status))

    def close(self, state: str) -> None:
        self._done.set()
        self._terminal.close()
        with self._lock:
            self._status["state"] = state
            self._status.pop("eta_s", None)
        self._tensorboard.close()
        with self._exit:
            patiently(self.flush)
            if self._exports.tensorboard is None:
                for path in self._events.iterdir():
                    patiently(partial(self._store.upload, path, f"tensorboard/{self._attempt:05d}/{path.name}"))

    def drop(self) -> None:
        self._done.set()
        self._terminal.close()
        with self._exit:
            self._tensorboard.close()

    def _keep_flushing(self) -> None:
        """Every few seconds, also when nothing has changed: the status is the run's heartbeat."""
        activity.be_a_heartbeat()
        while not self._done.wait(self._flush_interval):
            try:
                self.flush()
            except StoreError as error:
                log.warning("the metrics could not be written, trying again: %s", error.message)
            except RefusedError as error:
                self._refused = error  # for the training thread
                return

    def _put(self, key: str, data: bytes) -> None:
        """Rewrite a living object, unless a newer attempt has begun."""
        while True:
            try:
                if key not in self._etags:
                    etag = _etag(self._store, key)
                    require_newest(self._store, self._attempt)  # or the tag is no longer ours to know
                    self._etags[key] = etag
                etag = self._etags[key]
                self._etags[key] = (
                    self._store.put(key, data, if_none_match=True)
                    if etag is None
                    else self._store.put(key, data, if_match=etag)
                )
            except ConflictError:
                del self._etags[key]  # someone else's write, or our own whose answer was lost
            else:
                return


def _etag(store: Store, key: str) -> str | None:
    found = store.info(key)
    return None if found is None else found.etag


class _Line(documents.Document):
    """What of a line of the metrics is read again."""

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
    """Lines of the steps until `start_step`, by event and step; what somebody has damaged is left out."""
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


def log_to_console() -> None:
    """Show this process's log on stderr: ours from INFO on, others' warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ConsoleHandler()])
    logging.getLogger("cpmbee_job").setLevel(logging.INFO)


class _ConsoleHandler(logging.Handler):
    """Log records as lines above the live line."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False)


class _Terminal:
    """A live line where stderr is a terminal, else a log line now and then."""

    def __init__(self, total: int, start: int) -> None:
        columns = TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
        self._live = rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._live.add_task("", total=total, completed=start)
        self._live.start()
        self._last = 0.0
        self._total = total

    def step(self, step: int, epoch: int, loss: float, rate: float, eta: float) -> None:
        words = f"epoch {epoch}  loss {loss:.4f}  {rate:,.0f} tokens/s  ETA {_duration(eta)}"
        self._live.update(self._task, completed=step, description=words)
        at = time.monotonic()
        if not console.is_terminal and (at - self._last > TERMINAL_INTERVAL or step == self._total):
            self._last = at
            log.info("step %d/%d  %s", step, self._total, words)

    def close(self) -> None:
        self._live.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
