"""The command line: each verb parses, calls, prints and ends with the exit code of `cpmbee_job.errors`."""

import sys

import typer

from cpmbee_job.cli import console, data, job, model
from cpmbee_job.errors import CpmbeeError

app = typer.Typer(
    name="cpmbee-job",
    help="Fine-tune CPM-Bee: raw rows in, a delta in object storage, answers out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
job.register(app)
data.register(app)
model.register(app)


def main() -> None:
    """Run the command line; errors become words on stderr and an exit code."""
    try:
        app(prog_name="cpmbee-job")
    except CpmbeeError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
