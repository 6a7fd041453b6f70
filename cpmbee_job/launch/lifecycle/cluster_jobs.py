"""Create, find and delete the PyTorchJob of a run, or the Job of an inference.

Several commands may do so at the same time: the name makes creation unique, the uid makes deletion safe.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from cpmbee_job.errors import ConflictError, NotFoundError, RefusedError, UnfinishedError, UnreachableError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import JOBS, PODS, PYTORCHJOBS, Cluster, Object, get_or_none, ignore_warning
from cpmbee_job.launch.runs.find import job_url

INTERVAL = 1.0
"""Seconds between two looks at terminating pods."""
SPARE_SECONDS = 60.0
"""Seconds to wait beyond the grace period of the pods."""


def create_job(
    cluster: Cluster,
    manifest: Object,
    url: str,
    *,
    kind: str = PYTORCHJOBS,
    on_warning: Callable[[str], None] = ignore_warning,
) -> bool:
    """Create the job of the run or inference at `url`; return False if it exists.

    Raises `RefusedError` if the name belongs to another one.
    """
    try:
        cluster.create(kind, manifest, on_warning=on_warning)
    except ConflictError:
        get_job(cluster, manifest["metadata"]["name"], url, kind=kind)
        return False
    except UnreachableError as error:
        raise UnreachableError(error.message, hint="repeat the same command to complete it") from error
    return True


def get_job(cluster: Cluster, name: str, url: str, *, kind: str = PYTORCHJOBS) -> Object | None:
    """Return the job of the run or inference at `url`, None if there is none.

    Raises `RefusedError` if the name belongs to another one.
    """
    job = get_or_none(cluster, kind, name)
    if job is None:
        return None
    if job_url(job).rstrip("/") != url:
        owner = job_url(job) or "another program"
        raise RefusedError(
            f"the {'Job' if kind == JOBS else 'PyTorchJob'} {name} in namespace {cluster.namespace} "
            f"belongs to {owner}, not to {url}",
            hint="delete it or use another namespace; `submit --key` starts another run, which has another name",
        )
    return job


def remove_job(
    cluster: Cluster,
    job: Object,
    *,
    kind: str = PYTORCHJOBS,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Delete this job (by its uid) and wait until it and its pods are gone, so that its name can be reused.

    Raises `UnfinishedError` after `timeout` seconds.
    """
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    with suppress(NotFoundError, ConflictError):  # another command deleted it
        cluster.delete(kind, name, uid)
    deadline = clock() + timeout
    while True:
        try:
            left = _remaining(cluster, kind, job)
        except UnreachableError as error:
            left = [f"unknown, the cluster is unreachable: {error.message}"]
        if not left:
            return
        if clock() >= deadline:
            raise UnfinishedError(
                f"{name} is being deleted, but after {timeout:.0f} s there remain: {', '.join(left)}",
                hint="pods of a lost node remain until `kubectl delete pod --force`; repeat the command to wait again",
            )
        pause(INTERVAL)


def _remaining(cluster: Cluster, kind: str, job: Object) -> list[str]:
    """Return the names of the pods of the job, and the job itself, if they still exist."""
    uid, labels = job["metadata"]["uid"], job["metadata"].get("labels") or {}
    selector = {key: labels[key] for key in (naming.NAME_LABEL, naming.RUN_LABEL) if key in labels}
    left = [
        f"pod {pod['metadata']['name']}"
        for pod in cluster.list(PODS, selector)
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    with suppress(NotFoundError):
        if cluster.get(kind, job["metadata"]["name"])["metadata"]["uid"] == uid:
            left.append("the job itself")
    return left
