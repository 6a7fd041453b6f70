"""A run that has failed, was cancelled or has vanished goes on from its newest checkpoint.

Like a submit, one that dies half-way is completed by the next, and two at once make one PyTorchJob.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cpmbee_job.errors import ClusterError, NotFoundError, RefusedError, StoreError, UsageError
from cpmbee_job.launch.kube.protocol import Cluster, ignore_warning
from cpmbee_job.launch.lifecycle.pytorchjob import SPARE_SECONDS, create_job, get_job, remove_job, require_accepted
from cpmbee_job.launch.lifecycle.submit import look
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run import keys
from cpmbee_job.run.resumable import may_resume
from cpmbee_job.spec import parse_spec


@dataclass(frozen=True)
class Resumption:
    """What a resume has led to."""

    resumed: bool
    """False: it was going on already."""
    why: str


def resume(
    found: FoundRun,
    cluster: Cluster,
    overrides: Sequence[str] = (),
    *,
    warn: Callable[[str], None] = ignore_warning,
) -> Resumption:
    """Let the run go on, with overrides of what changes no step. `warn` gets what the cluster has to say.

    Raises `RefusedError` for a run that has succeeded, and for overrides that would compute something else.
    """
    name = found.reference
    if found.cluster_problem is not None:
        raise ClusterError(f"{name} can't be resumed: {found.cluster_problem}")
    if found.run is None:
        if found.store_problem is not None:
            raise StoreError(found.store_problem)
        raise NotFoundError(f"{found.url}: no run there (it has no {keys.SPEC})", hint="submit its spec again")
    status = look(found, cluster)
    if not may_resume(status.phase):
        raise RefusedError(f"{name} has succeeded; there is nothing left to do", hint="`submit --new` begins another")
    if not status.ended:
        return Resumption(False, f"it goes on already, {status.phase}")
    run = found.run
    home = run.spec.cluster.namespace
    if status.phase == "lost" and home not in (None, cluster.namespace):
        raise RefusedError(
            f"{name} was submitted to the namespace {home}, where it may be waiting",
            hint=f"--namespace {home}; or `cpmbee-job cancel {name} --namespace {home}` before it moves here",
        )
    spec = parse_spec(run.spec.to_yaml(), source=f"{run.url}/{keys.SPEC}", overrides=overrides)
    spec = spec.with_fields({"cluster.namespace": cluster.namespace})
    if (spec.name, spec.output) != (run.spec.name, run.spec.output):
        raise UsageError("--set: name and output say where the run lies; they stay")
    run.require_compatible(spec)
    manifest = render(spec, found.run_id, cluster.namespace)
    if found.job is not None:
        remove_job(cluster, found.job, timeout=spec.cluster.grace_period + SPARE_SECONDS)
    if get_job(cluster, manifest["metadata"]["name"], run.url) is not None:
        return Resumption(False, "somebody else has resumed it")
    require_accepted(cluster, spec, manifest, warn)
    run.change_spec(spec).reopen()
    if create_job(cluster, manifest, run.url):
        return Resumption(True, f"it was {status.phase}, and goes on")
    return Resumption(False, "somebody else has resumed it")
