"""A run's PyTorchJob, as `submit`, `resume` and `cancel` make, find and remove it. Several may do so at once: creating
is decided by the name, deleting by the uid."""

import time
from collections.abc import Callable
from contextlib import suppress

from cpmbee_job.errors import ConflictError, NotFoundError, RefusedError, UnfinishedError, UnreachableError
from cpmbee_job.launch.checks.server_check import dry_run
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, Cluster, Object
from cpmbee_job.launch.runs.find import job_url
from cpmbee_job.spec import JobSpec

INTERVAL = 1.0
"""Seconds between two looks at pods that are ending."""
SPARE_SECONDS = 60.0
"""Beyond the pods' own grace period."""


def require_accepted(cluster: Cluster, spec: JobSpec, manifest: Object, warn: Callable[[str], None]) -> None:
    """Raises `RejectedError` or `PreflightError` for a job that the cluster would not take. A quota that is used up is
    worth a warning only: the job waits for it."""
    verdict = dry_run(cluster, spec, manifest)
    for words in [*verdict.warnings, *verdict.exhausted]:
        warn(words)
    verdict.require_accepted(spec.name, f"{cluster.address}, namespace {cluster.namespace}")


def create_job(cluster: Cluster, manifest: Object, url: str) -> bool:
    """Create the PyTorchJob of the run at `url`; false where it exists.

    Raises `RefusedError` where the name is another run's.
    """
    try:
        cluster.create(PYTORCHJOBS, manifest)
    except ConflictError:
        get_job(cluster, manifest["metadata"]["name"], url)
        return False
    except UnreachableError as error:
        raise UnreachableError(error.message, hint="the same command again goes on from here") from error
    return True


def get_job(cluster: Cluster, name: str, url: str) -> Object | None:
    """The PyTorchJob of the run at `url`, or None. Raises `RefusedError` where the name is another run's."""
    try:
        job = cluster.get(PYTORCHJOBS, name)
    except NotFoundError:
        return None
    if job_url(job).rstrip("/") != url:
        raise RefusedError(
            f"the PyTorchJob {name} in namespace {cluster.namespace} belongs to "
            f"{job_url(job) or 'something that this command has not made'}, not to {url}",
            hint="`--key` with a word of your own makes this another run",
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
    """Delete that very job and wait until it and its pods are gone, so that another may take its name.

    Raises `UnfinishedError` after `timeout` seconds.
    """
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    with suppress(NotFoundError, ConflictError):  # somebody else has
        cluster.delete(kind, name, uid)
    deadline = clock() + timeout
    while True:
        try:
            left = _left(cluster, kind, job)
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


def _left(cluster: Cluster, kind: str, job: Object) -> list[str]:
    """What is still there of the job."""
    uid, labels = job["metadata"]["uid"], job["metadata"].get("labels") or {}
    wanted = {key: labels[key] for key in (naming.NAME_LABEL, naming.RUN_LABEL) if key in labels}
    left = [
        f"pod {pod['metadata']['name']}"
        for pod in cluster.list(PODS, wanted)
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    with suppress(NotFoundError):
        if cluster.get(kind, job["metadata"]["name"])["metadata"]["uid"] == uid:
            left.append("the job itself")
    return left
