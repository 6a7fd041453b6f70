"""Many runs, many pods: `list` and `status` ask little of the API and hold little of what it answers.

The objects are real, but nothing runs: the operator leaves the jobs to another controller, no scheduler takes the pods.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kubernetes import config

from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.api import ApiCluster
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, Object
from cpmbee_job.launch.kube.transport import Transport
from cpmbee_job.launch.runs.find import find_run
from cpmbee_job.launch.runs.listing import list_runs
from cpmbee_job.launch.runs.observe import observe
from tests.cluster.kubectl import fresh_namespace

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUM_RUNS, NUM_WORKERS = 500, 512
BIG = "0123456789ab"
MOST_GROWTH = 48 << 20
"""Bytes that the command may need more for 500 runs, or 512 workers, than for none."""


class CountingTransport(Transport):
    """Record the requests."""

    requests: list[str]

    def json(self, method: str, path: str, *arguments: Any, **options: Any) -> Object:
        self.requests.append(f"{method} {path.rpartition('/')[2]}")
        return super().json(method, path, *arguments, **options)


class Crowd(ApiCluster):
    """A namespace's cluster that records its requests."""

    def __init__(self, namespace: str) -> None:
        self.transport = CountingTransport(config.new_client_from_config)
        self.transport.requests = []
        super().__init__(self.transport, namespace)

    def put_status(self, kind: str, item: Object, status: Object) -> None:
        path = f"{self._path(kind)}/{item['metadata']['name']}/status"
        self.transport.json("PUT", path, body={**item, "status": status})

    def asked(self) -> list[str]:
        """Return the requests since the last call."""
        asked, self.transport.requests = self.transport.requests, []
        return asked


def labels_of(run_id: str) -> dict[str, str]:
    return {**naming.MANAGED_BY, naming.NAME_LABEL: "crowd", naming.RUN_LABEL: run_id}


def template(run_id: str) -> Object:
    container = {
        "name": naming.TRAIN_CONTAINER,
        "image": "registry.example/train:1",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [{"name": f"SETTING_{n}", "value": "x" * 100} for n in range(20)],  # pods of jobs are not small
    }
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": security, "schedulerName": "nobody"}
    return {"metadata": {"labels": labels_of(run_id)}, "spec": spec}


def job(run_id: str, replicas: int) -> Object:
    url = f"s3://bucket/runs/crowd/{run_id}"
    metadata = {"name": naming.job_name("crowd", run_id), "labels": labels_of(run_id)}
    metadata["annotations"] = {naming.URL_ANNOTATION: url}
    worker = {"replicas": replicas, "restartPolicy": "OnFailure", "template": template(run_id)}
    spec = {
        "runPolicy": {"managedBy": "kueue.x-k8s.io/multikueue"},  # the operator leaves it alone
        "pytorchReplicaSpecs": {"Worker": worker},
    }
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}


def pod(index: int) -> Object:
    labels = labels_of(BIG) | {"training.kubeflow.org/replica-index": str(index)}
    metadata = {"name": f"{naming.job_name('crowd', BIG)}-worker-{index}", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", **template(BIG), "metadata": metadata}


def running(restarts: int) -> Object:
    status = {"name": naming.TRAIN_CONTAINER, "restartCount": restarts, "ready": True, "imageID": "", "image": "x"}
    status["state"] = {"running": {"startedAt": "2026-01-31T12:00:00Z"}}
    return {"phase": "Running", "containerStatuses": [status], "conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    """500 runs of one worker that run, and one of 512 of which the last two don't."""

    def add_run(number: int) -> None:
        item = made.create(PYTORCHJOBS, job(f"{number:012x}", 1))
        made.put_status(PYTORCHJOBS, item, {"conditions": [{"type": "Running", "status": "True"}]})

    def add_pod(index: int) -> None:
        item = made.create(PODS, pod(index))
        if index < NUM_WORKERS - 2:
            made.put_status(PODS, item, running(restarts=index % 2))

    with fresh_namespace("crowd") as namespace:
        made = Crowd(namespace)
        made.create(PYTORCHJOBS, job(BIG, NUM_WORKERS))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add_run, range(NUM_RUNS)))
            list(threads.map(add_pod, range(NUM_WORKERS)))
        made.asked()
        yield made


@pytest.fixture(scope="module")
def empty_namespace() -> Iterator[str]:
    with fresh_namespace("crowd-none") as namespace:
        yield namespace


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cluster is queried: no credentials for a store exist here."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nothing")


def test_list_requests_one_page_of_500(crowd: Crowd) -> None:
    listing = list_runs(crowd)
    assert listing.total == NUM_RUNS + 1
    assert crowd.asked() == ["GET pytorchjobs"] * 2


def test_status_of_512_workers_needs_few_requests(crowd: Crowd) -> None:
    status = observe(find_run(f"crowd/{BIG}", crowd), crowd)
    assert len(status.pods) == NUM_WORKERS
    assert [pod.index for pod in status.pods] == list(range(NUM_WORKERS))
    assert status.restarts == NUM_WORKERS // 2 - 1
    assert status.problems[0].startswith("2 workers (510, 511): waits for the scheduler nobody")
    job_name = naming.job_name("crowd", BIG)
    assert crowd.asked() == [f"GET {job_name}"] * 2 + ["GET pods"] * 2


# a process has its parent's peak too, unless it asks for that of its own memory
MEASURED = """
import atexit, pathlib, sys
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr))
from cpmbee_job.cli import main
main()
"""


def peak(*arguments: str) -> int:
    """Return the peak memory of the command in bytes."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    line = next(line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def test_memory_does_not_grow_with_runs(crowd: Crowd, empty_namespace: str) -> None:
    none, many = (peak("list", "--limit=0", "--namespace", name) for name in (empty_namespace, crowd.namespace))
    assert many - none < MOST_GROWTH


def test_memory_does_not_grow_with_workers(crowd: Crowd) -> None:
    small, big = (peak("status", f"crowd/{run_id}", "--namespace", crowd.namespace) for run_id in ("0" * 12, BIG))
    assert big - small < MOST_GROWTH
