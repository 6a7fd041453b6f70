"""Show the state of a run, or of all runs."""

import re
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from cpmbee_job.cli.cluster.run_text import describe, summary, table
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference
from cpmbee_job.errors import UsageError


def status(
    run: RunReference,
    where: RunOptions,
    all_pods: Annotated[bool, flag("--all", "List all pods, however many there are.")] = False,
    watch: Annotated[bool, flag("--watch, -w", "Keep showing the state until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state, progress and problems of a run.

    The exit code is 0 in any state; `wait` exits with the run's exit code. Schema of --json:
    docs/reference/status.schema.json.

    Example: cpmbee-job status ccpm/0a1b2c3d4e5f --watch
    """
    from cpmbee_job.launch.runs.observe import observe

    if watch and as_json:
        raise UsageError("--watch and --json are incompatible: --json prints one document")
    found, cluster = where.find(run)
    if not watch:
        seen = observe(found, cluster)
        lines = describe(seen, datetime.now(UTC), all_pods)
        console.print_result(seen.model_dump(mode="json"), lines, as_json=as_json)
        return
    last = ""
    with Live(console=console.stdout, auto_refresh=False) if console.stdout.is_terminal else nullcontext() as live:
        while True:
            seen = observe(found, cluster)
            line = summary(seen)
            kind = re.sub(r" in \d+ \w+| \d+ \w+ ago", "", line)
            if live is not None:
                live.update(Group(*describe(seen, datetime.now(UTC), all_pods)), refresh=True)
            elif kind != last:  # a countdown alone is not a change
                typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")
            if seen.ended:
                return
            last = kind
            time.sleep(15 if live is None else 3)


def list_(
    where: RunOptions,
    limit: Annotated[int, option("--limit", "N", "Show at most this many, newest first; 0 shows all.", min=0)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the runs of a namespace and of an output folder.

    Without --output, only runs whose PyTorchJob still exists are listed. Schema of --json:
    docs/reference/list.schema.json.

    Example: cpmbee-job list --output s3://bucket/runs
    """
    from cpmbee_job.launch.runs.listing import list_runs

    cluster = where.connect_if_needed()
    listing = list_runs(cluster, output=where.output, storage=where.storage(), limit=limit or None)
    console.warn(*listing.notes)
    console.print_result(listing.model_dump(mode="json"), table(listing.runs, datetime.now(UTC)), as_json=as_json)
    if hidden := listing.total - len(listing.runs):
        console.say(f"{hidden} older runs are not shown (--limit)")
    elif not listing.runs:
        console.say("no runs" + ("" if cluster is None else f" in namespace {cluster.namespace}"))
