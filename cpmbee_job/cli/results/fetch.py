from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference
from cpmbee_job.errors import StoreError, UsageError


def fetch(
    run: RunReference,
    where: RunOptions,
    to: Annotated[Path | None, option("--to", "DIR", "The new folder. Default: ./NAME-RUN_ID.")] = None,
    what: Annotated[
        str | None, option("--what", "KINDS", "Of delta,metrics,result,spec,logs (the default),status,tensorboard.")
    ] = None,
    last: Annotated[bool, flag("--last", "Download the last delta instead of the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download the delta, metrics and logs of a run.

    The hashes of all files are verified.

    Example: cpmbee-job fetch ccpm/0a1b2c3d4e5f --to ccpm
    """
    from cpmbee_job.launch.lifecycle.fetch import fetch
    from cpmbee_job.store.urls import open_store

    found, _ = where.find(run)
    if found.store_problem is not None:
        raise StoreError(found.store_problem)
    target = to or Path(f"{found.name}-{found.run_id}")
    kinds = None if what is None else [kind.strip() for kind in what.split(",") if kind.strip()]
    if kinds == []:
        raise UsageError("--what: must name at least one kind")
    names = fetch(open_store(found.url, found.storage), target, kinds, last=last, bar=console.byte_bar)
    console.say(f"{len(names)} files of {found.url}")
    if as_json:
        console.print_json({"run": found.reference, "url": found.url, "folder": str(target), "files": list(names)})
    else:
        typer.echo(target)
