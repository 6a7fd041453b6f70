"""Verbs about what runs keep in the store: `checkpoints list`, `checkpoints verify`, `gc`."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import filesize

from cpmbee_job.cli.cluster.follow import seconds
from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, Namespace, Output, Reference, open_run
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import DamagedError, UsageError

SHORTEST_AGE = 3600.0
"""Seconds; what writes to a store gives up, or has written again, long before."""


def register(app: typer.Typer) -> None:
    checkpoints = typer.Typer(help="Look at the checkpoints of a run.", no_args_is_help=True, rich_markup_mode=None)
    checkpoints.command(name="list")(list_)
    checkpoints.command()(verify)
    app.add_typer(checkpoints, name="checkpoints")
    app.command()(gc)


def list_(
    run: Reference,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """List the checkpoints of a run, newest first. It would go on from the first of which nothing else is said.

    Example: cpmbee-job checkpoints list ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.runs.verify import list_checkpoints

    found = open_run(run, context, namespace, output, storage(endpoint_url, path_style))
    listed = list_checkpoints(found.store)
    if as_json:
        console.print_json({"url": found.url, "checkpoints": [one.record() for one in listed]})
        return
    for one in listed:
        written = "" if one.modified is None else f"{datetime.fromtimestamp(one.modified, UTC):%Y-%m-%dT%H:%M:%SZ}"
        line = f"step {one.step}  attempt {one.attempt}  {filesize.decimal(one.size or 0)}  {written}"
        words = one.problem or ("passed over by a later attempt" if one.is_overtaken else "")
        typer.echo(f"{line}  {words}".rstrip())
    if not listed:
        console.say("no checkpoints (yet)")


def verify(
    run: Reference,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Read all checkpoints and deltas of a run, compare their hashes, and count the rows that it has seen.

    Ends with 4 where something is not as it was written.

    Example: cpmbee-job checkpoints verify ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.runs.verify import verify_run

    found = open_run(run, context, namespace, output, storage(endpoint_url, path_style))
    report = verify_run(found)
    if as_json:
        console.print_json(report.record())
    else:
        for one in report.checkpoints:
            typer.echo(f"checkpoint of step {one.step}, attempt {one.attempt}: {one.problem or 'whole'}")
        for name, problem in report.deltas.items():
            typer.echo(f"delta {name}: {problem or 'whole'}")
        typer.echo(report.row_summary())
    if report.problems:
        newest = next((one for one in report.checkpoints if one.is_resumable), None)
        where = "from the beginning" if newest is None else f"after step {newest.step}"
        raise DamagedError(f"{found.url}: {len(report.problems)} damaged; the run would go on {where}")


def gc(
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", envvar="CPMBEE_OUTPUT", help="Where runs lie (`output` of the spec).", show_default=False
        ),
    ],
    delete: Annotated[bool, typer.Option("--delete", help="Delete it, instead of only saying what would go.")] = False,
    older_than: Annotated[
        float,
        typer.Option("--older-than", parser=seconds, metavar="TIME", help="Leave what is newer, like 90m, 24h, 7d."),
    ] = "24h",  # type: ignore[assignment]
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Find what no run needs: superseded and half-written checkpoints, prepared data and uploads that no run names,
    what `evaluate` and `predict` have begun with --on-cluster and never ended, uploads that were cut. Their results
    stay. Says what would go; docs/reference/formats.md has the rules.

    Example: cpmbee-job gc s3://bucket/runs --delete
    """
    from cpmbee_job.launch.lifecycle.garbage import collect, find_garbage

    if older_than < SHORTEST_AGE:
        raise UsageError("--older-than: an hour at least, or it could hit who is writing now")
    settings = storage(endpoint_url, path_style).seen_by_launcher()
    findings = find_garbage(output, settings, time.time() - older_than)
    for note in findings.notes:
        console.warn(note)
    garbage = findings.garbage
    if delete:
        garbage = tuple(collect(findings, settings, lambda one: console.say(f"deleted {one.url}")))
    num_bytes = sum(one.num_bytes for one in garbage)
    if as_json:
        found = [{"kind": one.kind, "url": one.url, "why": one.why, "bytes": one.num_bytes} for one in garbage]
        console.print_json({"output": output, "deleted": delete, "bytes": num_bytes, "garbage": found})
        return
    if not delete:
        for one in garbage:
            typer.echo(f"{one.kind:<12}{filesize.decimal(one.num_bytes):>10}  {one.url}  ({one.why})")
    words = "deleted" if delete else "could go (--delete)" if garbage else "found"
    console.say(f"{filesize.decimal(num_bytes)} in {len(garbage)} places {words}")
