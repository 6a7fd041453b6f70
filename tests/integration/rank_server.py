"""Start ranks of a run quickly, as workers forked from this process, which has torch loaded.

Lines of JSON on stdin: {"url": ..., "rank": ..., "world_size": ..., "port": ..., "log": ..., "fault": ...} starts one
and returns its process id; {"wait": pid} returns its exit status (negative: a signal's number).

Each object that it writes or deletes is a line of `<log>.writes`: the rank and the name.

A fault is a signal that the rank sends to itself (0: an exception, like out of memory):
{"signal": 9, "at": "step", "number": 7, "when": "after"}; at "write" it is counted in writes to the store, which are
objects written or deleted.

`sharded`: the rank trains as on GPUs too small for the base, with BMTrain's own code (`tests.bmtrain_on_cpu`).
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import torch

from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.lora import delta_model_class
from cpmbee_job.model.plan import Plan
from cpmbee_job.run.run import Run
from cpmbee_job.store.files import FileStore
from cpmbee_job.train import worker
from cpmbee_job.train.engine.torch_engine import TorchEngine
from cpmbee_job.train.worker import init_world, work

WRITES = ("put", "upload", "delete")


def main() -> None:
    # Their imports take seconds: do them once, before any fork.
    delta_model_class()
    torch.optim.AdamW([torch.zeros(1)])
    pyarrow.chunked_array([[1]]).to_pandas()
    answer("ready")
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            answer(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(execute(**command))
        answer(pid)


def answer(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def execute(
    url: str, rank: int, world_size: int, port: int, log: str, sharded: bool, fault: dict[str, Any] | None
) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    record_writes(rank, f"{log}.writes")
    if fault is not None:
        inject(**fault)
    if sharded:
        shard_the_base()
    run = Run.open(url)
    try:
        failure = work(run, init_world(), lambda: fetch_model(run.spec.model, run.storage))
    except BaseException:
        logging.exception("rank %d", rank)
        return 1
    return 0 if failure is None else failure.exit_code


def shard_the_base() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    importlib.import_module("tests.bmtrain_on_cpu")
    worker.plan_for = lambda *_: Plan("bmtrain", "sharded", "fp32", 0)


def inject(at: str, number: int, when: str, signal: int) -> None:
    """Send this process the signal before or after the call with this number (for steps: the step's number)."""
    calls = 0

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            hits = (arguments[0] if at == "step" else calls) == number
            if hits and when == "before":
                strike(signal)
            result = method(self, *arguments, **options)
            if hits and when == "after":
                strike(signal)
            return result

        return call

    if at == "step":
        TorchEngine.step = wrapped(TorchEngine.step)  # type: ignore[method-assign]
    else:
        for name in WRITES:
            setattr(FileStore, name, wrapped(getattr(FileStore, name)))


def strike(signal: int) -> None:
    if signal == 0:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    os.kill(os.getpid(), signal)


def record_writes(rank: int, place: str) -> None:
    def recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            result = method(self, *arguments, **options)
            with open(place, "a") as file:  # noqa: PTH123
                file.write(f"{rank} {arguments[1] if name == 'upload' else arguments[0]}\n")
            return result

        return call

    for name in WRITES:
        setattr(FileStore, name, recorded(name, getattr(FileStore, name)))


if __name__ == "__main__":
    main()
