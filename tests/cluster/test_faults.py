"""Faults of pods: training resumes with the loss curve of an undisturbed run; `make e2e-full`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cpmbee_job.launch.kube import naming
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import eventually, get, kubectl
from tests.cluster.recoveries import Recovery, Training
from tests.cluster.test_e2e import metrics
from tests.integration.jobs import losses

pytestmark = [pytest.mark.e2e_full, pytest.mark.timeout(1800)]


def storage(laptop: Laptop) -> StorageSpec:
    """Return the store settings for this machine."""
    return StorageSpec(endpoint_url=laptop.spec["storage"]["launcher_endpoint_url"])


def test_a_run_resumes_after_any_fault_of_its_pods(laptop: Laptop, recoveries: list[Recovery]):
    laptop.spec["train"] |= {
        "epochs": 1000,
        "max_steps": 300,
        "train_iters": 300,
        "global_batch_size": 48,
        "eval_interval": 100,
        "early_stop_patience": 0,
    }
    laptop.spec["workers"] |= {"min": 1, "max": 3, "cpu": "500m"}
    run, training = submit(laptop)

    def disturb(fault: str, do: partial[None], before: int, after: int) -> Recovery:
        eventually(lambda: training.is_under_way(before), f"{before} workers train before {fault}")
        recoveries.append(training.recovery(fault, do, after))
        return recoveries[-1]

    eventually(lambda: training.is_under_way(2), "2 workers train")
    attempt = training.attempt()
    with without_operator():
        done = len(training.steps())
        eventually(lambda: len(training.steps()) > done, "a step without the operator")
    assert training.attempt() == attempt

    disturb("worker 1 killed", partial(laptop.kill, run, 1), 2, 2)
    disturb("worker 0 killed", partial(laptop.kill, run, 0), 2, 2)
    disturb("all workers killed", partial(laptop.kill, run), 2, 2)
    disturb("processes of worker 1 crashed", partial(crash, laptop, run, 1), 2, 2)
    drained = disturb("node drained", partial(drain, laptop, run), 2, 2)
    grown = disturb("scaled from 2 to 3", partial(scale, laptop, 3), 2, 3)
    shrunk = disturb("scaled from 3 to 1", partial(scale, laptop, 1), 3, 1)
    assert [drained.again, grown.again, shrunk.again] == [0, 0, 0]

    waited = laptop.ask("wait", run, "--timeout=12m")
    assert waited.code == 0, waited.err
    assert_undisturbed(laptop, run)


def test_a_pod_deleted_during_its_init_container_is_replaced(laptop: Laptop, recoveries: list[Recovery]):
    rows = laptop.folder / "raw" / "train.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8") * 300, encoding="utf-8")  # 16 pieces
    laptop.spec["train"] |= {"max_steps": 6}
    laptop.spec["workers"] |= {"count": 3, "cpu": "500m"}
    run, training = submit(laptop)
    prepared = open_store(f"{laptop.spec['output']}/prepared", storage(laptop))

    def made(ending: str) -> list[str]:
        return [found.key for found in prepared.list() if found.key.endswith(ending)]

    def kill() -> None:
        laptop.kill(run, 1)
        assert made("index.json") == []

    eventually(lambda: is_preparing(laptop, run, 1) and len(made(".arrow")) > 2, "worker 1 prepares with the others")
    recoveries.append(training.recovery("init step of 1 worker of 3 killed", kill, 3))
    waited = laptop.ask("wait", run, "--timeout=10m")
    assert waited.code == 0, waited.err
    assert_undisturbed(laptop, run)


def submit(laptop: Laptop) -> tuple[str, Training]:
    submitted = laptop.submit()
    assert submitted.code == 0, submitted.err
    run = submitted.out.strip()
    return run, Training(open_store(f"{laptop.spec['output']}/{run}", storage(laptop)))


def is_preparing(laptop: Laptop, run: str, index: int) -> bool:
    for name in laptop.pods(run, index):
        statuses = get("pod", name, "-n", laptop.namespace)["status"].get("initContainerStatuses", [])
        return any("running" in status["state"] for status in statuses)
    return False


def assert_undisturbed(laptop: Laptop, run: str) -> None:
    """Assert one line for each step, with the loss of an undisturbed local run on one process."""
    found = [line["loss"] for line in metrics(laptop, run) if line["event"] == "step"]
    laptop.spec["output"] = str(laptop.folder / "runs")
    local = laptop.run("local", laptop.job, "--processes=1")
    assert local.code == 0, local.err
    assert found == pytest.approx(losses(Path(local.out.strip())), rel=1e-4)


def crash(laptop: Laptop, run: str, index: int) -> None:
    """Kill all processes of a worker's container without SIGTERM."""
    (name,) = laptop.pods(run, index)
    soon = "(sleep 1; kill -s KILL -- -1) > /dev/null 2>&1 &"  # `exec` itself is to end well
    kubectl("exec", "-n", laptop.namespace, name, "-c", naming.TRAIN_CONTAINER, "--", "sh", "-c", soon)


def scale(laptop: Laptop, replicas: int) -> None:
    (job,) = get("pytorchjobs", "-n", laptop.namespace)["items"]
    kubectl("scale", "pytorchjob", job["metadata"]["name"], "-n", laptop.namespace, f"--replicas={replicas}")


def drain(laptop: Laptop, run: str) -> None:
    """Take the run's pods from worker 1's node, which takes none until they have gone."""
    (name,) = laptop.pods(run, 1)
    pod = get("pod", name, "-n", laptop.namespace)
    node = pod["spec"]["nodeName"]
    ours = f"--pod-selector={naming.RUN_LABEL}={run.split('/')[1]}"
    try:
        kubectl("drain", node, ours, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=180s")
    finally:
        kubectl("uncordon", node)


@contextmanager
def without_operator() -> Iterator[None]:
    (deployment,) = get("deployments", "--all-namespaces", "-l", "control-plane=kubeflow-training-operator")["items"]
    where = [f"deployment/{deployment['metadata']['name']}", "-n", deployment["metadata"]["namespace"]]
    kubectl("scale", *where, "--replicas=0")
    try:
        kubectl("rollout", "status", *where)
        yield
    finally:
        kubectl("scale", *where, f"--replicas={deployment['spec']['replicas']}")
        kubectl("rollout", "status", *where, "--timeout=180s")
