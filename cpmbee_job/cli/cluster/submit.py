from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpmbee_job.cli.cluster.attach import attach
from cpmbee_job.cli.cluster.run_text import next_commands, run_fields
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.ci_report import reported
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import AsJson, JobClusterOptions, JobOptions, PipelineOptions, WaitOptions
from cpmbee_job.cli.shared.signals import cancelling
from cpmbee_job.errors import UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.lifecycle.submit import Submission


def submit(
    job: JobOptions,
    waiting: WaitOptions,
    pipeline: PipelineOptions,
    where: JobClusterOptions,
    key: Annotated[str, option("--key", "KEY", "Distinguishes runs of an identical spec.")] = "",
    new: Annotated[bool, flag("--new", "Start another run even if one exists.")] = False,
    if_changed: Annotated[
        bool,
        flag(
            "--if-changed",
            "Start a run only if data, model or training fields changed since the last successful run, and no such "
            "run is active. A failed or cancelled run does not count.",
        ),
    ] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Print the PyTorchJob; upload, write and create nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on the cluster, or find its existing run.

    Submitting the same job again finds the same run. In a CI pipeline, use --wait, --key for a run of its own,
    --cancel-on-signal, --summary and --junit (docs/how-to/pipeline.md).

    Example: cpmbee-job submit job.yaml --set workers.count=4 --follow
    """
    from cpmbee_job.launch.lifecycle.submit import SubmitHooks, SubmitOptions, require_submittable, submit
    from cpmbee_job.launch.manifest.render import remarks
    from cpmbee_job.launch.manifest.yaml_text import to_yaml

    if pipeline.given and not waiting.enabled:
        raise UsageError("--cancel-on-signal, --summary and --junit require --wait or --follow")
    waiting.check()
    if dry_run and waiting.enabled:
        raise UsageError("--dry-run starts no run, and is incompatible with --wait and --follow")
    if if_changed and (new or key):
        raise UsageError(f"--if-changed is incompatible with {'--new' if new else '--key'}")
    with (
        reported(str(job.job), pipeline.summary, pipeline.junit, as_json=as_json) as report,
        cancelling(pipeline.cancel_on_signal, report.see) as signals,
    ):
        spec = job.load()
        report.title = spec.name
        submittable = require_submittable(spec)
        for remark in remarks(spec):
            console.warn(remark)
        cluster = where.connect(spec.cluster.namespace)
        done = submit(
            submittable,
            cluster,
            SubmitOptions(key, new, if_changed, dry_run),
            SubmitHooks(console.byte_bar, console.warn, on_run=lambda found: signals.hold(found, cluster)),
        )
        signals.watch(done.found, cluster)
        _tell(done, dry_run=dry_run)
        if not as_json and not dry_run:
            typer.echo(done.found.reference)
        elif not as_json and done.manifest is not None:
            typer.echo(to_yaml(done.manifest), nl=False)
        if waiting.enabled:
            attach(done.found, cluster, waiting.timeout, follow=waiting.follow, on_status=report.see)
        elif as_json:
            console.print_json(_document(done, dry_run=dry_run))


def _tell(done: "Submission", *, dry_run: bool) -> None:
    """Print on stderr what happened and what to do next."""
    console.say(f"{done.found.reference}: {done.why}")
    if dry_run and done.manifest is None:
        console.say("dry run: nothing would be created")
    for difference in done.differences:
        console.warn(f"differs from the existing run: {difference}")
    if dry_run:
        return
    if done.succeeded:
        run = done.found.arguments(None if done.found.job is None else done.namespace)
        console.say(f"run {done.found.url}; download its delta with `cpmbee-job fetch {run}`")
    else:
        console.say(f"run {done.found.url}, PyTorchJob {done.found.job_name} in namespace {done.namespace}")
        console.say(next_commands(done.found, done.namespace))


def _document(done: "Submission", *, dry_run: bool) -> dict[str, Any]:
    document = {
        **run_fields(done.found, done.namespace),
        "adopted": done.adopted,
        "why": done.why,
        "differences": list(done.differences),
    }
    return document | ({"manifest": done.manifest} if dry_run else {})
