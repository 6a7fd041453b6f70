"""Resume a run that failed, was cancelled or vanished from its newest checkpoint.

As with submit, the next call completes an interrupted one, and two concurrent calls create one PyTorchJob.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cpmbee_job.errors import ClusterError, NotFoundError, RefusedError, StoreError, UsageError
from cpmbee_job.launch.kube.protocol import Cluster, ignore_warning
from cpmbee_job.launch.lifecycle.cluster_jobs import SPARE_SECONDS, create_job, get_job, remove_job
from cpmbee_job.launch.lifecycle.submit import observe_reachable, require_accepted
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run import keys
from cpmbee_job.run.run import may_resume
from cpmbee_job.spec import parse_spec


@dataclass(frozen=True)
class Resumption:
    """The outcome of a resume."""

    resumed: bool
    """False if the run was active already."""
    why: str


def resume(
    found: FoundRun,
    cluster: Cluster,
    overrides: Sequence[str] = (),
    *,
    warn: Callable[[str], None] = ignore_warning,
) -> Resumption:
    """Resume the run, with overrides of fields that do not change what is computed. `warn` gets the API's warnings.

    Raises `RefusedError` for a run that succeeded, and for overrides that would change what is computed.
    """
    name = found.reference
    if found.cluster_problem is not None:
        raise ClusterError(f"cannot resume {name}: {found.cluster_problem}")
    if found.run is None:
        if found.store_problem is not None:
            raise StoreError(found.store_problem)
        raise NotFoundError(f"{found.url}: no run there ({keys.SPEC} does not exist)", hint="submit its spec again")
    status = observe_reachable(found, cluster)
    if not may_resume(status.phase):
        raise RefusedError(f"{name} has already succeeded", hint="`submit --new` starts another run")
    if not status.ended:
        return Resumption(False, f"already active ({status.phase})")
    run = found.run
    home = run.spec.cluster.namespace
    if status.phase == "lost" and home not in (None, cluster.namespace):
        raise RefusedError(
            f"{name} was submitted to namespace {home}, where it may be pending",
            hint=f"--namespace {home}; to move it here, first `cpmbee-job cancel {name} --namespace {home}`",
        )
    spec = parse_spec(run.spec.to_yaml(), source=f"{run.url}/{keys.SPEC}", overrides=overrides)
    spec = spec.with_fields({"cluster.namespace": cluster.namespace})
    if (spec.name, spec.output) != (run.spec.name, run.spec.output):
        raise UsageError("--set: name and output of a run cannot change")
    run.require_compatible(spec)
    manifest = render(spec, found.run_id, cluster.namespace)
    if found.job is not None:
        remove_job(cluster, found.job, timeout=spec.cluster.grace_period + SPARE_SECONDS)
    if get_job(cluster, manifest["metadata"]["name"], run.url) is not None:
        return Resumption(False, "resumed by another command")
    require_accepted(cluster, spec, manifest, warn)
    run.change_spec(spec).reopen()
    if create_job(cluster, manifest, run.url):
        return Resumption(True, f"resumed; it was {status.phase}")
    return Resumption(False, "resumed by another command")
