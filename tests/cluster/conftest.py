"""A cluster with an S3 server in it, and a laptop that submits to it."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpmbee_job.demo import CITIES, DAYS, WEATHER, make_model
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import INDEX_LABEL
from tests.cluster import s3
from tests.cluster.images import TRAIN
from tests.cluster.kubectl import apply, fresh_namespace, get, kubectl
from tests.cluster.recoveries import RECOVERIES, Recovery, table
from tests.integration.jobs import Outcome, cli

TRAIN_IMAGE = os.environ.get("CPMBEE_TRAIN_IMAGE", TRAIN)


@dataclass(frozen=True)
class S3:
    """Addresses of the S3 server: for pods and for this machine."""

    endpoint_url: str
    launcher_endpoint_url: str


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG names no cluster; `make e2e` brings one up")
    if shutil.which("kubectl") is None:
        pytest.fail("these tests need kubectl")


@pytest.fixture(scope="session")
def s3_server(cluster: None) -> Iterator[S3]:
    with fresh_namespace("e2e-s3") as namespace:
        endpoint_url = s3.start(namespace)
        with s3.forwarded(namespace) as launcher_endpoint_url:
            before = {name: os.environ.get(name) for name in s3.CREDENTIALS}
            os.environ.update(s3.CREDENTIALS)
            try:
                s3.make_bucket(launcher_endpoint_url)
                yield S3(endpoint_url, launcher_endpoint_url)
            finally:
                for name, value in before.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def recoveries(pytestconfig: pytest.Config) -> list[Recovery]:
    """Collect recoveries for the summary at the end of the session."""
    return pytestconfig.stash.setdefault(RECOVERIES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if found := config.stash.get(RECOVERIES, []):
        terminalreporter.section("recoveries")
        terminalreporter.write(table(found))


@pytest.fixture
def namespace(cluster: None) -> Iterator[str]:
    with fresh_namespace("e2e") as name:
        yield name


@dataclass
class Laptop:
    """A folder with a spec, its rows and its model, and the command line."""

    folder: Path
    namespace: str
    spec: dict[str, Any]

    @property
    def job(self) -> Path:
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    def run(self, command: str, *arguments: object) -> Outcome:
        storage = self.spec["storage"]
        return cli(
            command,
            *arguments,
            env={"CPMBEE_OUTPUT": self.spec["output"], "AWS_ENDPOINT_URL": storage["launcher_endpoint_url"]},
        )

    def submit(self, *arguments: object) -> Outcome:
        return self.run("submit", self.job, *arguments)

    def ask(self, command: str, run: str, *arguments: object) -> Outcome:
        """Run a command about a run."""
        return self.run(command, run, "-n", self.namespace, *arguments)

    def status(self, run: str) -> dict[str, Any]:
        done = self.ask("status", run, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def pods(self, run: str, index: int | None = None) -> list[str]:
        """Names of the run's pods, or of the one with this index."""
        labels = {naming.RUN_LABEL: run.split("/")[1]} | ({} if index is None else {INDEX_LABEL: str(index)})
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return [pod["metadata"]["name"] for pod in get("pods", "-n", self.namespace, "-l", selector)["items"]]

    def kill(self, run: str, index: int | None = None) -> None:
        """Delete that pod, or all, with a second or two to end in."""
        kubectl("delete", "pod", "-n", self.namespace, *self.pods(run, index), "--grace-period=0", "--force")


@pytest.fixture
def laptop(tmp_path: Path, namespace: str, s3_server: S3) -> Laptop:
    """A CCPM-like job of two workers on CPU: raw rows and a small model that lie here."""
    make_model(tmp_path / "model")
    (tmp_path / "raw").mkdir()
    for name, count, seed in (("train", 600, 1), ("eval", 60, 2)):
        write_rows(tmp_path / "raw" / f"{name}.jsonl", count, seed)
    secret = {"name": "s3-credentials", "namespace": namespace}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": s3.CREDENTIALS})
    spec = {
        "name": "ccpm-like",
        "model": "model/",
        "data": {"train": "raw/train.jsonl", "eval": "raw/eval.jsonl", "format": "ccpm"},
        "output": f"s3://{s3.BUCKET}/{namespace}",
        "image": TRAIN_IMAGE,
        "train": {
            "epochs": 3,
            "batch_size": 2,
            "global_batch_size": 8,
            "max_length": 256,
            "lr": 3.0e-3,
            "lr_decay_style": "cosine",
            "train_iters": 60,
            "eval_interval": 10,
            "checkpoint_interval": 5,
        },
        "workers": {"count": 2, "cpu": "800m", "memory": "3Gi", "ephemeral": "2Gi", "shared_memory": "256Mi"},
        "cluster": {"namespace": namespace, "grace_period": 60},
        "storage": {
            "endpoint_url": s3_server.endpoint_url,
            "launcher_endpoint_url": s3_server.launcher_endpoint_url,
            "region": "us-east-1",
            "secret": secret["name"],
        },
    }
    return Laptop(tmp_path, namespace, spec)


def write_rows(path: Path, count: int, seed: int) -> None:
    """Rows in CCPM's raw form: a question, four candidates, the number of the right one."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        day, city, weather = draw.choice(DAYS), draw.choice(CITIES), draw.choice(WEATHER)
        order = draw.sample(WEATHER, 4)
        candidates = "".join(f"[{index}]{candidate}" for index, candidate in enumerate(order))
        row = {"target": str(order.index(weather)), "input": f"[翻译]{day}{city}有{weather}。{candidates}[答案]"}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(rows), encoding="utf-8")
