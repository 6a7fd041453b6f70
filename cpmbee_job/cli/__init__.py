"""The command line: each command parses, calls, prints and ends with an exit code of `errors.ExitCode`."""

import errno
import io
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from cpmbee_job import __version__
from cpmbee_job.cli.admin import stored
from cpmbee_job.cli.cluster.doctor import doctor
from cpmbee_job.cli.cluster.lifecycle import cancel, render, resume, submit, wait
from cpmbee_job.cli.cluster.logs import logs
from cpmbee_job.cli.cluster.status import list_, status
from cpmbee_job.cli.data.check import check
from cpmbee_job.cli.data.encode import encode
from cpmbee_job.cli.data.preprocess import preprocess, reformat
from cpmbee_job.cli.local.local import init, local, prepare, validate
from cpmbee_job.cli.results import model
from cpmbee_job.cli.results.evaluate import evaluate
from cpmbee_job.cli.results.predict import predict
from cpmbee_job.cli.results.run_results import compare, fetch, promote
from cpmbee_job.cli.shared import console, extras
from cpmbee_job.cli.shared.commands import add_commands, add_group, new_app
from cpmbee_job.errors import CpmbeeError, DiskError, UsageError

DATA, TRAIN, CLUSTER, RESULTS, ADMIN = "Data", "Train here", "Run on a cluster", "Results", "Administration"
app = new_app("Fine-tune CPM-Bee: data in, a LoRA delta in object storage, answers out.")
add_commands(app, reformat, preprocess, panel=DATA)
add_commands(app, init, validate, prepare, local, panel=TRAIN)
add_commands(app, doctor, render, submit, status, list_, logs, wait, cancel, resume, panel=CLUSTER)
add_commands(app, fetch, predict, evaluate, compare, promote, panel=RESULTS)
add_commands(app, stored.gc, panel=ADMIN)
add_group(app, "data", "Check data, and show it as the model sees it.", check, encode, panel=DATA)
add_group(app, "model", "Merge, convert and create models.", model.merge, model.convert, model.init, panel=RESULTS)
add_group(app, "checkpoints", "List and verify the checkpoints of a run.", stored.list_, stored.verify, panel=ADMIN)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"cpmbee-job {__version__}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. An error becomes a message on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding such as GBK has no emoji, which are then escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(arguments, prog_name="cpmbee-job", standalone_mode=False))
    except typer.TyperException as error:
        message = error.format_message()
        if not message:  # no command was given, and the help is printed
            sys.exit(error.exit_code)
        context: typer.Context | None = getattr(error, "ctx", None)
        _fail(UsageError(message, hint=f"see `{context.command_path if context else 'cpmbee-job'} --help`"))
    except CpmbeeError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        explained = extras.explain(error)
        if explained is None:
            raise
        _fail(explained)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(DiskError(f"{error.filename or 'the output'}: {error.strerror}"))


def _fail(error: CpmbeeError) -> NoReturn:
    console.error(str(error))
    sys.exit(error.exit_code)
