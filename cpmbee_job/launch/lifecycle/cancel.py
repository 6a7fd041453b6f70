"""Cancel a run: write its result first, so that it stays cancelled, then delete its PyTorchJob. The store is kept."""

from cpmbee_job.errors import ClusterError, RefusedError, StoreError
from cpmbee_job.launch.kube.protocol import Cluster
from cpmbee_job.launch.lifecycle.cluster_jobs import SPARE_SECONDS, remove_job
from cpmbee_job.launch.runs.find import FoundRun


def cancel(found: FoundRun, cluster: Cluster, reason: str, *, timeout: float | None = None) -> str:
    """Cancel the run and wait until its pods are gone. Returns what was done, as text.

    The pods may write a checkpoint within their grace period. Raises `RefusedError` for a run that succeeded or failed,
    `UnfinishedError` if pods remain after `timeout` seconds (default: the grace period plus one minute).
    """
    name = found.reference
    if found.cluster_problem is not None:
        raise ClusterError(f"cannot cancel {name}: {found.cluster_problem}")
    if found.run is None and found.store_problem is not None:
        raise StoreError(
            f"{found.store_problem}\ncannot mark {name} as cancelled",
            hint=f"`kubectl delete pytorchjob {found.job_name} -n {cluster.namespace}` stops its pods",
        )
    home = None if found.run is None else found.run.spec.cluster.namespace
    if found.job is None and home not in (None, cluster.namespace):
        raise RefusedError(f"{name} was submitted to namespace {home}", hint=f"--namespace {home}")
    if found.run is not None:
        result = found.run.result() or found.run.finish("cancelled", reason)
        if result["state"] != "cancelled":
            raise RefusedError(f"{name} has already {result['state']}: {result['reason']}")
    if found.job is None:
        return "it had no PyTorchJob"
    grace = 120.0 if found.run is None else float(found.run.spec.cluster.grace_period)
    remove_job(cluster, found.job, timeout=grace + SPARE_SECONDS if timeout is None else timeout)
    return "its pods are gone"
