"""Stops a run: its result first, so that it stays stopped, then its PyTorchJob. The store keeps all of it."""

from cpmbee_job.errors import ClusterError, RefusedError, StoreError
from cpmbee_job.launch.kube.protocol import Cluster
from cpmbee_job.launch.lifecycle.pytorchjob import SPARE_SECONDS, remove_job
from cpmbee_job.launch.runs.find import FoundRun


def cancel(found: FoundRun, cluster: Cluster, reason: str, *, timeout: float | None = None) -> str:
    """Cancel the run and wait until its pods are gone; returns what was done, in words.

    They have their grace period for a checkpoint. Raises `RefusedError` for a run that has ended otherwise,
    `UnfinishedError` where pods are still there after `timeout` seconds (default: the grace period and a minute).
    """
    name = found.reference
    if found.cluster_problem is not None:
        raise ClusterError(f"{name} can't be stopped: {found.cluster_problem}")
    if found.run is None and found.store_problem is not None:
        raise StoreError(
            f"{found.store_problem}\n{name} can't be marked as cancelled",
            hint=f"`kubectl delete pytorchjob {found.job_name} -n {cluster.namespace}` would stop its pods",
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
