"""The verb `render`: the Kubernetes object that a spec stands for."""

from typing import Annotated

import typer

from cpmbee_job.cli.local.job import AsJson, JobFile, Overrides
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import JobNamespace
from cpmbee_job.spec import load_spec


def register(app: typer.Typer) -> None:
    app.command(name="render")(render_job)


def render_job(
    job: JobFile,
    overrides: Overrides = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run. Default: a digest of the spec's training fields.")
    ] = None,
    namespace: JobNamespace = None,
    as_json: AsJson = False,
) -> None:
    """Print the PyTorchJob that runs a job, without asking a cluster.

    Example: cpmbee-job render job.yaml --set workers.count=4 | kubectl apply -f -
    """
    from cpmbee_job.launch.manifest.render import default_run_id, remarks, render, to_yaml
    from cpmbee_job.run.run import check_run_id

    spec = load_spec(job, overrides or ())
    manifest = render(spec, default_run_id(spec) if run_id is None else check_run_id(run_id), namespace)
    for remark in remarks(spec):
        console.warn(remark)
    if as_json:
        console.print_json(manifest)
    else:
        typer.echo(to_yaml(manifest), nl=False)
