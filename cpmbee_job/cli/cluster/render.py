from typing import Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, JobOptions, Namespace


def render(
    job: JobOptions,
    run_id: Annotated[str | None, option("--run-id", "ID", "Run id. Default: a digest of the training fields.")] = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's PyTorchJob without contacting a cluster.

    Example: cpmbee-job render job.yaml --set workers.count=4 | kubectl apply -f -
    """
    from cpmbee_job.launch.manifest.render import default_run_id, remarks, render
    from cpmbee_job.launch.manifest.yaml_text import to_yaml
    from cpmbee_job.run.run import check_run_id

    spec = job.load()
    manifest = render(spec, default_run_id(spec) if run_id is None else check_run_id(run_id), namespace)
    for remark in remarks(spec):
        console.warn(remark)
    console.print_result(manifest, to_yaml(manifest).splitlines(), as_json=as_json)
