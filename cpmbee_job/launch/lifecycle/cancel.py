"""Stops a run: its result first, so that it stays stopped, then its PyTorchJob. The store keeps all of it."""

import time
from collections.abc import Callable
from contextlib import suppress

from cpmbee_job import contract
from cpmbee_job.errors import (
    ClusterError,
    ConflictError,
    NotFoundError,
    RefusedError,
    StoreError,
    UnfinishedError,
    UnreachableError,
)
from cpmbee_job.launch.kube.cluster import PODS, PYTORCHJOBS, Cluster, Object
from cpmbee_job.launch.runs.find import FoundRun

INTERVAL = 1.0
"""Seconds between two looks at pods that are ending."""
SPARE_SECONDS = 60.0
"""Beyond the pods' own grace period."""


def cancel(found: FoundRun, cluster: Cluster, reason: str, *, timeout: float | None = None) -> str:
    """Cancel the run and wait until its pods are gone; returns what was done, in words.

    They have their grace period for a checkpoint. Raises `RefusedError` for a run that has ended otherwise,
    `UnfinishedError` where pods are still there after `timeout` seconds (default: the grace period and a minute).
    """
    name = f"{found.name}/{found.run_id}"
    if found.cluster_problem is not None:
        raise ClusterError(f"{name} can't be stopped: {found.cluster_problem}")
    if found.run is None and found.store_problem is not None:
        raise StoreError(
            f"{found.store_problem}\n{name} can't be marked as cancelled",
            hint=f"`kubectl delete pytorchjob {contract.job_name(found.name, found.run_id)}` would stop its pods",
        )
    home = None if found.run is None else found.run.spec.cluster.namespace
    if found.job is None and home not in (None, cluster.namespace):
        raise RefusedError(f"{name} was submitted to the namespace {home}", hint=f"--namespace {home}")
    if found.run is not None:
        before = found.run.result()
        result = before or found.run.finish("cancelled", reason)
        if result["state"] != "cancelled":
            raise RefusedError(f"{name} has {result['state']} already: {result['reason']}")
    if found.job is None:
        return "it had no PyTorchJob (any more)"
    grace = 120.0 if found.run is None else float(found.run.spec.cluster.grace_period)
    remove_job(cluster, found.job, timeout=grace + SPARE_SECONDS if timeout is None else timeout)
    return "its pods are gone"


def remove_job(
    cluster: Cluster,
    job: Object,
    *,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Delete that very PyTorchJob and wait until it and its pods are gone, so that another may take its name.

    Raises `UnfinishedError` after `timeout` seconds.
    """
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    with suppress(NotFoundError, ConflictError):  # somebody else has
        cluster.delete(PYTORCHJOBS, name, uid)
    deadline = clock() + timeout
    while True:
        try:
            left = _left(cluster, job)
        except UnreachableError as error:
            left = [f"the cluster can't be asked: {error.message}"]
        if not left:
            return
        if clock() >= deadline:
            raise UnfinishedError(
                f"{name} is being deleted, but after {timeout:.0f} s there is still: {', '.join(left)}",
                hint="a lost node's pods stay until `kubectl delete pod --force`; the same command waits again",
            )
        pause(INTERVAL)


def _left(cluster: Cluster, job: Object) -> list[str]:
    """What is still there of the job."""
    uid, labels = job["metadata"]["uid"], job["metadata"].get("labels") or {}
    wanted = {key: labels[key] for key in (contract.NAME_LABEL, contract.RUN_LABEL) if key in labels}
    left = [
        f"pod {pod['metadata']['name']}"
        for pod in cluster.list(PODS, wanted)
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    with suppress(NotFoundError):
        if cluster.get(PYTORCHJOBS, job["metadata"]["name"])["metadata"]["uid"] == uid:
            left.append("the PyTorchJob")
    return left
