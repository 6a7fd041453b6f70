"""Render and start runs, wait for their end, cancel and resume them."""

import getpass
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpmbee_job.cli.cluster.attach import attach
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.ci_report import reported
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import (
    AsJson,
    ClusterOptions,
    JobOptions,
    Namespace,
    Overrides,
    PipelineOptions,
    RunOptions,
    RunReference,
    Timeout,
    WaitOptions,
    duration_option,
)
from cpmbee_job.cli.shared.signals import cancelling
from cpmbee_job.errors import UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.lifecycle.submit import Submission
    from cpmbee_job.launch.runs.find import FoundRun


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
    console.warn(*remarks(spec))
    console.print_result(manifest, to_yaml(manifest).splitlines(), as_json=as_json)


def submit(
    job: JobOptions,
    waiting: WaitOptions,
    pipeline: PipelineOptions,
    where: ClusterOptions,
    key: Annotated[str, option("--key", "KEY", "Distinguishes runs of an identical spec.")] = "",
    new: Annotated[bool, flag("--new", "Start another run even if one exists.")] = False,
    if_changed: Annotated[bool, flag("--if-changed", "Start only if inputs changed since the last success.")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Print the PyTorchJob; upload, write and create nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on the cluster, or find its existing run.

    Submitting the same job again finds the same run. In a CI pipeline, use --wait, --key for a run of its own,
    --cancel-on-signal, --summary and --junit (docs/how-to/pipeline.md). With --if-changed, a run starts only if data,
    model or training fields changed since the last successful run, and no such run is active.

    Example: cpmbee-job submit job.yaml --set workers.count=4 --follow
    """
    from cpmbee_job.launch.lifecycle.submit import SubmitOptions, require_submittable, submit
    from cpmbee_job.launch.manifest.render import remarks
    from cpmbee_job.launch.manifest.yaml_text import to_yaml

    if pipeline != PipelineOptions() and not waiting.enabled:
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
        inputs = require_submittable(spec)
        console.warn(*remarks(spec))
        cluster = where.connect(spec.cluster.namespace)
        options = SubmitOptions(
            key,
            new,
            if_changed,
            dry_run,
            console.byte_bar,
            console.warn,
            on_run=lambda found: signals.watch(found, cluster, starting=True),
        )
        done = submit(spec, inputs, cluster, options)
        signals.watch(done.found, cluster)
        _tell(done, dry_run=dry_run)
        if not as_json and not dry_run:
            typer.echo(done.found.reference)
        elif not as_json and done.manifest is not None:
            typer.echo(to_yaml(done.manifest), nl=False)
        if waiting.enabled:
            attach(done.found, cluster, waiting.timeout, follow=waiting.follow, on_status=report.see)
        elif as_json:
            details = {"adopted": done.adopted, "why": done.why, "differences": list(done.differences)}
            details |= {"manifest": done.manifest} if dry_run else {}
            console.print_json(_run_fields(done.found, done.namespace) | details)


def wait(
    run: RunReference, pipeline: PipelineOptions, where: RunOptions, timeout: Timeout = None, as_json: AsJson = False
) -> None:
    """Wait until a run ends, and exit with its exit code.

    0: succeeded, and result and delta are stored. 100: failed, or a more specific code such as 3 for invalid data.
    101: still running after --timeout. 102: no such run. 103: cancelled. 130: Ctrl-C; the run continues. Failures of
    the Kubernetes API or the object store never end the wait.

    Example: cpmbee-job wait ccpm/0a1b2c3d4e5f --timeout 2h
    """
    with (
        reported(run, pipeline.summary, pipeline.junit, as_json=as_json) as report,
        cancelling(pipeline.cancel_on_signal, report.see) as signals,
    ):
        found, cluster = where.find(run)
        signals.watch(found, cluster)
        attach(found, cluster, timeout, on_status=report.see)


def cancel(
    run: RunReference,
    where: RunOptions,
    timeout: Annotated[float | None, duration_option("--timeout", "Default: the pods' grace period + 1m.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a run; its pods write a checkpoint first.

    All that the run has stored is kept, and `resume` continues it.

    Example: cpmbee-job cancel ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.lifecycle.cancel import cancel

    found, cluster = where.find_on_cluster(run)
    name = found.reference
    console.say(f"cancelling {name}; its pods write a checkpoint")
    done = cancel(found, cluster, f"cancelled by {_user()}", timeout=timeout)
    console.say(f"{name} is cancelled: {done}; resume it with `cpmbee-job resume {found.arguments(None)}`")
    if as_json:
        console.print_json({**_run_fields(found, cluster.namespace), "why": done})


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
    console.say(_next_commands(found, cluster.namespace))
    if as_json:
        console.print_json({**_run_fields(found, cluster.namespace), "why": done.why})


def _tell(done: "Submission", *, dry_run: bool) -> None:
    """Print on stderr what happened and what to do next."""
    console.say(f"{done.found.reference}: {done.why}")
    if dry_run and done.manifest is None:
        console.say("dry run: nothing would be created")
    console.warn(*(f"differs from the existing run: {difference}" for difference in done.differences))
    if dry_run:
        return
    if done.succeeded:
        run = done.found.arguments(None if done.found.job is None else done.namespace)
        console.say(f"run {done.found.url}; download its delta with `cpmbee-job fetch {run}`")
    else:
        console.say(f"run {done.found.url}, PyTorchJob {done.found.job_name} in namespace {done.namespace}")
        console.say(_next_commands(done.found, done.namespace))


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = f"user {os.getuid()}"
    return f"{user} on {os.uname().nodename}"


def _next_commands(found: "FoundRun", namespace: str) -> str:
    """The commands that show an active run."""
    run = found.arguments(namespace)
    return f"state: `cpmbee-job status {run}`; logs: `cpmbee-job logs {run} --follow`"


def _run_fields(found: "FoundRun", namespace: str) -> dict[str, Any]:
    """The fields that identify a run on a cluster in a JSON document."""
    return {"run": found.reference, "url": found.url, "job": found.job_name, "namespace": namespace}
