"""Small jobs on this machine, run as a user runs them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.demo import make_model, reports
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.paths import ROOT
from tests.processes import run_python

JOB = """\
name: weather
model: model/
data: {train: train.jsonl, eval: eval.jsonl}
output: runs/
train:
  epochs: 2
  batch_size: 3
  global_batch_size: 8
  max_length: 256
  lr: 3.0e-3
  lr_decay_style: cosine
  train_iters: 20
  eval_interval: 4
  checkpoint_interval: 2
"""


def make_job(folder: Path, rows: int = 400) -> Path:
    """A spec, its model and its data in `folder`: 12 steps of 8 rows for the default 400 examples."""
    make_model(folder / "model")
    for name, count, seed in (("train", rows, 1), ("eval", 40, 2)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in reports(count, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    return folder / "job.yaml"


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def cli(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
    done = run_python("-m", "cpmbee_job.cli", *arguments, env={**os.environ, **(env or {})})
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """The same in the background, as a program of its own from the start."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cpmbee_job.cli", *(str(a) for a in arguments)]


def install(folder: Path) -> Path:
    """A folder for a PATH, with the command line in it and nothing else."""
    folder.mkdir()
    program = folder / "cpmbee-job"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cpmbee_job.cli "$@"\n')
    program.chmod(0o755)
    return folder


def metrics(run: Path | str, event: str = "step", storage: StorageSpec | None = None) -> list[dict[str, Any]]:
    text = open_store(str(run), storage).get(keys.METRICS).decode()
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def assert_same_scores(scores: dict[str, Any], others: dict[str, Any]) -> None:
    """Compare numbers to 1e-4 and digests exactly."""
    assert scores.keys() == others.keys()
    for key, value in others.items():
        assert scores[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), key


def losses(run: Path | str, storage: StorageSpec | None = None) -> list[float]:
    """The loss of each step; asserts that there is exactly one line for each, from 1."""
    lines = metrics(run, storage=storage)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def numbers(run: Path | str, storage: StorageSpec | None = None) -> list[Any]:
    """Return the training metrics without speeds and attempts."""
    steps, evaluations = (metrics(run, event, storage) for event in ("step", "eval"))
    of_steps = [(line["step"], line["loss"], line["grad_norm"], line["tokens"]) for line in steps]
    return of_steps + [(line["step"], line["loss"], line["best"]) for line in evaluations]


def delta(run: Path | str, pointer: str, storage: StorageSpec | None = None) -> dict[str, bytes]:
    """The files of the delta that `pointer` (BEST, LAST) names, but for its manifest, which has the time in it."""
    store = open_store(str(run), storage)
    prefix = json.loads(store.get(f"delta/{pointer}"))["prefix"]
    files = {entry.key.removeprefix(prefix): store.get(entry.key) for entry in store.list(prefix)}
    return {name: data for name, data in files.items() if name != "manifest.json"}


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def wait_until_gone(pids: list[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{[_arguments(pid) for pid in alive]} are still there"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    return bool(_status(pid))


def children(pid: int) -> list[int]:
    """Return the live child processes of `pid`."""
    found = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [child for child in found if _status(child)[1:2] == [str(pid)]]


def descendants(pid: int) -> list[int]:
    """Return all live descendants of `pid`, including the workers of torchrun."""
    return [process for child in children(pid) for process in (child, *descendants(child))]


def _status(pid: int) -> list[str]:
    """State, parent, ... of a process; empty for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


def workers(pid: int) -> list[int]:
    """Return the descendants of `pid` that execute steps."""
    return [
        p
        for p in descendants(pid)
        if b"cpmbee_job.train.worker" in _arguments(p) and b"torch.distributed.run" not in _arguments(p)
    ]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
