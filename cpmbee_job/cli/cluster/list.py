from datetime import UTC, datetime
from typing import Annotated

from cpmbee_job.cli.cluster.run_text import table
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, RunOptions


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
    for note in listing.notes:
        console.warn(note)
    if as_json:
        console.print_json(listing.model_dump(mode="json"))
        return
    console.print_lines(table(listing.runs, datetime.now(UTC)))
    hidden = listing.total - len(listing.runs)
    if hidden:
        console.say(f"{hidden} older runs are not shown (--limit)")
    elif not listing.runs:
        console.say("no runs" + ("" if cluster is None else f" in namespace {cluster.namespace}"))
