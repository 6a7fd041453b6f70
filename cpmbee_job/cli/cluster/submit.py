"""Verbs that start and stop runs on a cluster: `submit`, `resume`, `cancel`."""

import getpass
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpmbee_job.cli.cluster.follow import Timeout, seconds, stay
from cpmbee_job.cli.local.job import AsJson, JobFile, Overrides
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, JobNamespace, Namespace, Output, Reference, connect
from cpmbee_job.cli.shared.report import JUnitFile, SummaryFile, reported
from cpmbee_job.cli.shared.signals import CancelOnSignal, cancelling
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import UsageError
from cpmbee_job.spec import StorageSpec, load_spec

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.lifecycle.submit import Submission
    from cpmbee_job.launch.runs.find import FoundRun

Wait = Annotated[bool, typer.Option("--wait", help="Stay until the run has ended; the exit code is the run's.")]
Follow = Annotated[bool, typer.Option("--follow", help="Like --wait, and show what its pods say.")]


def register(app: typer.Typer) -> None:
    app.command(name="submit")(submit_job)
    app.command(name="resume")(resume_run)
    app.command(name="cancel")(cancel_run)


def submit_job(
    job: JobFile,
    overrides: Overrides = None,
    key: Annotated[str, typer.Option(help="A word that makes this another run than the same spec without it.")] = "",
    new: Annotated[bool, typer.Option("--new", help="Begin another run even where there is one already.")] = False,
    if_changed: Annotated[
        bool,
        typer.Option(
            "--if-changed",
            help="Begin a run, unless one of the same data, model and training fields, and without a key, is at it, or "
            "this job's last to succeed trained the same. One that failed or was cancelled is followed by another.",
        ),
    ] = False,
    wait: Wait = False,
    follow: Follow = False,
    timeout: Timeout = None,
    cancel_on_signal: CancelOnSignal = False,
    summary: SummaryFile = None,
    junit: JUnitFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent; upload, write and create nothing.")
    ] = False,
    as_json: AsJson = False,
    context: Context = None,
    namespace: JobNamespace = None,
) -> None:
    """Run a job on a cluster. The same job again finds the same run.

    In a pipeline, use --wait, --key, --cancel-on-signal, --summary and --junit: docs/how-to/pipeline.md.

    Example: cpmbee-job submit job.yaml --set workers.count=4 --follow
    """
    from cpmbee_job.launch.lifecycle.submit import require_submittable, submit
    from cpmbee_job.launch.manifest.render import remarks, to_yaml

    stays = wait or follow
    _check_options(stays, timeout, dry_run=dry_run, for_those_who_wait=cancel_on_signal or summary or junit)
    if if_changed and (new or key):
        option = "--new" if new else "--key"
        raise UsageError(f"--if-changed asks for a run where something has changed, {option} for one in any case")
    with (
        reported(str(job), summary, junit, as_json=as_json) as report,
        cancelling(cancel_on_signal, report.see) as signals,
    ):
        spec = load_spec(job, overrides or ())
        report.title = spec.name
        require_submittable(spec)
        for remark in remarks(spec):
            console.warn(remark)
        cluster = connect(context, namespace or spec.cluster.namespace)
        done = submit(
            spec,
            cluster,
            key=key,
            new=new,
            if_changed=if_changed,
            dry_run=dry_run,
            bar=console.byte_bar,
            warn=console.warn,
            on_run=lambda found: signals.hold(found, cluster),
        )
        signals.watch(done.found, cluster)
        _tell(done, dry_run=dry_run)
        if not as_json and not dry_run:
            typer.echo(done.found.reference)
        elif not as_json and done.manifest is not None:
            typer.echo(to_yaml(done.manifest), nl=False)
        if stays:
            stay(done.found, cluster, timeout, follow=follow, on_status=report.see)
        elif as_json:
            console.print_json(_document(done, dry_run=dry_run))


def resume_run(
    run: Reference,
    overrides: Overrides = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Let a failed, cancelled or vanished run go on from its newest checkpoint.

    Example: cpmbee-job resume ccpm/0a1b2c3d4e5f --set workers.memory=64Gi --follow
    """
    from cpmbee_job.launch.lifecycle.resume import resume

    _check_options(wait or follow, timeout)
    found, cluster = _find(run, context, namespace, output, storage(endpoint_url, path_style))
    _require_cluster_run(found.url, f"`cpmbee-job local` with --run-id {found.run_id} goes on with it")
    name = found.reference
    console.say(f"resuming {name}; what is left of its pods goes first")
    done = resume(found, cluster, overrides or (), warn=console.warn)
    console.say(f"{name}: {done.why}")
    if not as_json:
        typer.echo(name)
    if wait or follow:
        with reported(name, as_json=as_json) as report:
            stay(found, cluster, timeout, follow=follow, on_status=report.see)
        return
    _say_what_next(found, cluster.namespace)
    if as_json:
        console.print_json({**_names(found), "namespace": cluster.namespace, "why": done.why})


def cancel_run(
    run: Reference,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=seconds,
            metavar="TIME",
            help="Until when its pods must be gone, like 90 or 5m. Default: their grace period and a minute.",
        ),
    ] = None,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Stop a run. Its pods write a checkpoint; what is in the store stays.

    Example: cpmbee-job cancel ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.lifecycle.cancel import cancel

    found, cluster = _find(run, context, namespace, output, storage(endpoint_url, path_style))
    _require_cluster_run(found.url, "Ctrl-C, or SIGTERM, stops the command that runs it")
    name = found.reference
    console.say(f"cancelling {name}; its pods have time for a checkpoint")
    done = cancel(found, cluster, f"cancelled by {_who()}", timeout=timeout)
    console.say(f"{name} is cancelled: {done}; `cpmbee-job resume {found.arguments(None)}` lets it go on")
    if as_json:
        console.print_json({**_names(found), "namespace": cluster.namespace, "why": done})


def _find(
    run: str, context: str | None, namespace: str | None, output: str | None, settings: StorageSpec
) -> "tuple[FoundRun, Cluster]":
    """The run, and the cluster with the namespace that it was submitted to, where no other is asked for."""
    from cpmbee_job.launch.runs.find import find_at_home, find_run

    cluster = connect(context, namespace)
    if namespace is not None:
        return find_run(run, cluster, output=output, storage=settings), cluster
    found, home = find_at_home(run, cluster, lambda home: connect(context, home), output=output, storage=settings)
    return found, home or cluster


def _check_options(
    stays: bool, timeout: float | None, *, dry_run: bool = False, for_those_who_wait: object = None
) -> None:
    if for_those_who_wait and not stays:
        raise UsageError(
            "--cancel-on-signal, --summary and --junit are about a run's end", hint="with --wait or --follow"
        )
    if timeout is not None and not stays:
        raise UsageError("--timeout: there is nothing to wait for", hint="with --wait or --follow")
    if dry_run and stays:
        raise UsageError("--dry-run begins no run that could be waited for")


def _tell(done: "Submission", *, dry_run: bool) -> None:
    """What has happened and what comes next, on stderr."""
    console.say(f"{done.found.reference}: {done.why}")
    if dry_run and done.manifest is None:
        console.say("dry run: nothing would be sent")
    for difference in done.differences:
        console.warn(f"asked for now, but not so in that run: {difference}")
    if dry_run:
        return
    if done.succeeded:
        run = done.found.arguments(None if done.found.job is None else done.namespace)
        console.say(f"run {done.found.url}; `cpmbee-job fetch {run}` copies its delta here")
    else:
        console.say(f"run {done.found.url}, PyTorchJob {done.found.job_name} in namespace {done.namespace}")
        _say_what_next(done.found, done.namespace)


def _say_what_next(found: "FoundRun", namespace: str) -> None:
    run = found.arguments(namespace)
    console.say(f"`cpmbee-job status {run}` says how it does, `cpmbee-job logs {run} --follow` what its pods say")


def _require_cluster_run(url: str, hint: str) -> None:
    if url and not url.startswith("s3://"):
        raise UsageError(f"{url}: a run of this machine, of which no cluster knows", hint=hint)


def _document(done: "Submission", *, dry_run: bool) -> dict[str, Any]:
    document = {
        **_names(done.found),
        "namespace": done.namespace,
        "adopted": done.adopted,
        "why": done.why,
        "differences": list(done.differences),
    }
    return document | ({"manifest": done.manifest} if dry_run else {})


def _names(found: "FoundRun") -> dict[str, Any]:
    return {"run": found.reference, "url": found.url, "job": found.job_name}


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in a container
        user = f"user {os.getuid()}"
    return f"{user} on {os.uname().nodename}"
