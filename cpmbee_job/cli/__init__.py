"""The command line: each verb parses, calls, prints and ends with the exit code of `cpmbee_job.errors`."""

import errno
import io
import sys
from typing import Annotated

import typer

from cpmbee_job import __version__
from cpmbee_job.cli.admin import checkpoints
from cpmbee_job.cli.cluster import doctor, follow, render, status, submit
from cpmbee_job.cli.data import encode
from cpmbee_job.cli.local import job
from cpmbee_job.cli.results import fetch, inference, model, promote
from cpmbee_job.cli.shared import console, extras
from cpmbee_job.errors import CpmbeeError, DiskError

app = typer.Typer(
    name="cpmbee-job",
    help="Fine-tune CPM-Bee: raw rows in, a delta in object storage, answers out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
job.register(app)
encode.register(app)
inference.register(app)
model.register(app)
doctor.register(app)
render.register(app)
submit.register(app)
status.register(app)
follow.register(app)
fetch.register(app)
promote.register(app)
checkpoints.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cpmbee-job {__version__}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors become words on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of GBK, say, which has no emoji: those are written as numbers
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="cpmbee-job")
    except CpmbeeError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        lacking = extras.explain(error)
        if lacking is None:
            raise
        console.error(str(lacking))
        sys.exit(lacking.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        console.error(f"{error.filename or 'the output'}: {error.strerror}")
        sys.exit(DiskError.exit_code)
