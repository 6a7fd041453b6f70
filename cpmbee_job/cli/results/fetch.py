"""The verb `fetch`: what a run has left in the store, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, Namespace, Output, Reference, find
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import StoreError, UsageError


def register(app: typer.Typer) -> None:
    app.command(name="fetch")(fetch_run)


def fetch_run(
    run: Reference,
    to: Annotated[Path | None, typer.Option(help="The new folder. Default: ./<name>-<run id>.")] = None,
    what: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Of delta, metrics, result, spec, logs, status and tensorboard, with commas between. Default: the "
            "first five, as far as they are there.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The last delta instead of the best.")] = False,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Copy a run's delta, metrics and logs to a folder here, hashes checked.

    Example: cpmbee-job fetch ccpm/0a1b2c3d4e5f --to ccpm
    """
    from cpmbee_job.launch.lifecycle.fetch import fetch
    from cpmbee_job.store.urls import open_store

    found, _ = find(run, context, namespace, output, storage(endpoint_url, path_style))
    if found.store_problem is not None:
        raise StoreError(found.store_problem)
    target = to or Path(f"{found.name}-{found.run_id}")
    kinds = None if what is None else [kind.strip() for kind in what.split(",") if kind.strip()]
    if kinds == []:
        raise UsageError("--what: names nothing")
    names = fetch(open_store(found.url, found.storage), target, kinds, last=last, bar=console.byte_bar)
    console.say(f"{len(names)} files of {found.url}")
    if as_json:
        console.print_json({"run": found.reference, "url": found.url, "folder": str(target), "files": list(names)})
    else:
        typer.echo(target)
