import typer

from cpmbee_job.cli.cluster.attach import attach
from cpmbee_job.cli.cluster.run_text import next_commands, run_fields
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.ci_report import reported
from cpmbee_job.cli.shared.options import AsJson, Overrides, RunOptions, RunReference, WaitOptions


def resume(
    run: RunReference, waiting: WaitOptions, where: RunOptions, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Resume a run from its newest checkpoint.

    For a run that failed or was cancelled, or whose PyTorchJob was deleted.

    Example: cpmbee-job resume ccpm/0a1b2c3d4e5f --set workers.memory=64Gi --follow
    """
    from cpmbee_job.launch.lifecycle.resume import resume

    waiting.check()
    found, cluster = where.find_on_cluster(run)
    name = found.reference
    console.say(f"resuming {name}; deleting what is left of its pods first")
    done = resume(found, cluster, overrides or (), warn=console.warn)
    console.say(f"{name}: {done.why}")
    if not as_json:
        typer.echo(name)
    if waiting.enabled:
        with reported(name, as_json=as_json) as report:
            attach(found, cluster, waiting.timeout, follow=waiting.follow, on_status=report.see)
        return
    console.say(next_commands(found, cluster.namespace))
    if as_json:
        console.print_json({**run_fields(found, cluster.namespace), "why": done.why})
