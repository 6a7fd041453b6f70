"""Metrics of a pod as Prometheus reads them: entrypoint and two workers, with all data in S3."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TypeVar
from urllib.request import ProxyHandler, build_opener

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from cpmbee_job.errors import ConflictError, DamagedError, StoreError
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, load_spec
from cpmbee_job.store.s3 import traffic
from cpmbee_job.train.output.metrics import ENTRYPOINT, WORKERS
from tests.integration.jobs import make_job, wait_until_gone, workers
from tests.processes import run_python

T = TypeVar("T")
Scrape = dict[str, float]
"""By name, and `name/value` of a label other than `run`."""
DEFINED = {family.name: family for registry in (WORKERS, ENTRYPOINT) for family in registry.collect()}
OPENER = build_opener(ProxyHandler({}))


@contextmanager
def pod(run: Run, log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], Scrape]]]:
    """Run the training container with two workers. Yield its process and a function that reads its metrics."""
    environment = {**os.environ, contract.STORAGE_ENV: run.storage.model_dump_json()}
    run_python(*contract.prepare_command(run.url), env=environment).check_returncode()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *contract.train_command(run.url), "--processes=2"],
            env={**environment, contract.METRICS_PORT_ENV: "0"},
            stderr=file,
        )
    try:
        (port,) = until(lambda: re.findall(r"^metrics on port (\d+)$", log.read_text(), re.MULTILINE), bool)
        yield process, lambda: scrape(port)
    finally:
        process.terminate()
        process.wait()


def scrape(port: str) -> Scrape:
    with OPENER.open(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    values: Scrape = {}
    for family in text_string_to_metric_families(text):
        assert (family.type, family.documentation) == (DEFINED[family.name].type, DEFINED[family.name].documentation)
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == "weather/r1"
            values["/".join([sample.name, *labels.values()])] = sample.value
    return values


def until(ask: Callable[[], T], what: Callable[[T], bool]) -> T:
    """Poll until the condition holds."""
    deadline = time.monotonic() + 120
    while not what(values := ask()):
        assert time.monotonic() < deadline, values
        time.sleep(0.1)
    return values


def test_prometheus_sees_a_run_train_fail_and_resume(bucket: str, proxy, tmp_path: Path) -> None:
    endless = ("train.epochs=100000", "train.early_stop_patience=0", "train.checkpoint_interval=5")
    spec = load_spec(make_job(tmp_path), [f"output={bucket}", *endless])
    run = Run.start(spec, "r1", StorageSpec(endpoint_url=proxy.url))
    before = time.time()
    with pod(run, tmp_path / "log") as (process, ask):
        proxy.fail("error", 1, method="PUT", key="checkpoints")
        seen = "cpmbee_s3_errors_total/500", "cpmbee_checkpoint_duration_seconds", "cpmbee_eval_loss"
        first = until(ask, lambda values: values.keys() >= set(seen))
        gpu = {name for name in DEFINED if name.startswith("cpmbee_gpu_")}
        named = {family for family in DEFINED if any(name.startswith(family) for name in first)}
        assert named == set(DEFINED) - (set() if torch.cuda.is_available() else gpu)
        assert first["cpmbee_world_size"] == 2
        assert first["cpmbee_attempt"] == first["cpmbee_torchrun_starts_total"] == 1
        assert first["cpmbee_planned_steps"] == 100000 * 6
        moments = "cpmbee_entrypoint_start", "cpmbee_checkpoint", "cpmbee_progress"
        started, saved, progressed = (first[f"{name}_timestamp_seconds"] for name in moments)
        assert before < started < saved < time.time()
        assert saved - started > first["cpmbee_checkpoint_duration_seconds"] > 0
        assert started < progressed < time.time()
        assert first["cpmbee_s3_errors_total/500"] == 1
        assert first["cpmbee_s3_sent_bytes_total"] > max(entry.size for entry in run.store.list("checkpoints/"))
        assert first["cpmbee_s3_received_bytes_total"] > 0

        # The last metrics of the workers stay while none run.
        killed = workers(process.pid)
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        wait_until_gone(killed)
        last = ask()
        assert last.keys() >= first.keys()

        # Counters continue, and the metrics of the new workers count.
        then = until(
            ask, lambda values: values["cpmbee_attempt"] == 2 and values["cpmbee_step"] > last["cpmbee_step"] + 8
        )
        assert then["cpmbee_torchrun_starts_total"] == 2
        assert all(then[name] >= last[name] for name in last if name.endswith("_total"))
        assert then["cpmbee_progress_timestamp_seconds"] > last["cpmbee_progress_timestamp_seconds"]

    lines = [json.loads(line) for line in run.store.get(keys.METRICS).splitlines()]
    losses = {(line["event"], line["loss"]) for line in lines}
    assert ("step", then["cpmbee_loss"]) in losses
    assert ("eval", then["cpmbee_eval_loss"]) in losses
    assert first["cpmbee_tokens_total"] in accumulate(line["tokens"] for line in lines if line["event"] == "step")


class Tally:
    """Receives what an `Observer` reports."""

    def __init__(self) -> None:
        self.num_sent = self.num_received = 0
        self.reasons: list[str] = []

    def sent(self, num_bytes: int) -> None:
        self.num_sent += num_bytes

    def received(self, num_bytes: int) -> None:
        self.num_received += num_bytes

    def failed(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def tally() -> Iterator[Tally]:
    tally = Tally()
    traffic.observe(traffic.Observer(tally.sent, tally.received, tally.failed))
    yield tally
    traffic.observe(traffic.Observer())


def test_bytes_to_and_from_s3_are_counted_on_every_path(shaky, proxy, tally: Tally, tmp_path: Path) -> None:
    small, large = os.urandom(10_000), os.urandom(12 << 20)
    (tmp_path / "large").write_bytes(large)
    etag = shaky.put("small", small)
    shaky.upload(tmp_path / "large", "large")
    assert proxy.uploaded == tally.num_sent > len(small) + len(large)
    before = tally.num_received
    assert shaky.get("small") == small
    buffer = bytearray(4000)
    shaky.read_into("small", 1000, [memoryview(buffer)], etag)
    shaky.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large
    assert tally.num_received - before == len(small) + len(buffer) + len(large)
    assert tally.reasons == []


def test_failures_of_s3_are_counted_by_their_reason(shaky, proxy, tally: Tally) -> None:
    shaky.put("a", b"text", if_none_match=True)
    with pytest.raises(ConflictError):
        shaky.put("a", b"other", if_none_match=True)
    assert shaky.info("b") is None
    assert tally.reasons == []  # answers, no failures
    for kind, reason in (("slow_down", "503"), ("drop", traffic.NO_ANSWER), ("truncate", traffic.BROKEN)):
        proxy.fail(kind)
        assert shaky.get("a") == b"text"
        assert tally.reasons == [reason]
        tally.reasons.clear()
    proxy.fail("error", 3)
    with pytest.raises(StoreError) as failure:
        shaky.get("a")
    assert not isinstance(failure.value, DamagedError)
    assert tally.reasons == ["500"] * 3
