"""Run the command line in this process, as `cpmbee-job` would run it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from cpmbee_job.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> Done:
    """Run `cpmbee-job` with these arguments. Any exception other than its exit is raised."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    written = [stream.detach().getvalue().decode() for stream in (out, err)]
    return Done(int(code or 0), *written)
