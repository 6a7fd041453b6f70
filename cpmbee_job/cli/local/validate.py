from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag
from cpmbee_job.cli.shared.options import AsJson, ClusterOptions, JobOptions

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.spec import JobSpec


def validate(
    job: JobOptions,
    where: ClusterOptions,
    server: Annotated[
        bool, flag("--server", "Also check by dry runs on the cluster: operator, admission, quotas.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a job spec and print it with all defaults.

    Example: cpmbee-job validate job.yaml --server
    """
    from cpmbee_job.launch.checks.gpu_memory import require_room
    from cpmbee_job.launch.manifest.render import remarks

    spec = job.load()
    require_room(spec)
    for remark in remarks(spec):
        console.warn(f"{job.job}: {remark}")
    if server:
        _check_on_server(f"{job.job}", spec, where.connect(spec.cluster.namespace))
    if as_json:
        console.print_json(spec.model_dump(mode="json"))
    else:
        typer.echo(spec.to_yaml(), nl=False)
        console.say(f"{job.job} is valid; packed rows in a step: {spec.global_batch_size}")


def _check_on_server(source: str, spec: "JobSpec", cluster: "Cluster") -> None:
    """Raises the error with which the cluster would reject the job."""
    from cpmbee_job.launch.checks.server_check import check_on_server, rendered

    verdict = check_on_server(cluster, spec, rendered(spec, cluster.namespace))
    for warning in verdict.warnings:
        console.warn(warning)
    for request in verdict.not_permitted:
        console.warn(f"not permitted, so not checked: {request}")
    place = f"{cluster.address}, namespace {cluster.namespace}"
    verdict.require_accepted(source, place)
    limit = ", as far as it could be checked" if verdict.not_permitted else ""
    console.say(f"{place} would accept {source}{limit}")
