"""The options that say how rows are read, shared by the verbs about data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.errors import SpecError, UsageError

Vocabulary = Annotated[Path, typer.Option("--vocab", help="The model's vocab.txt.", show_default=False)]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="How a row becomes an example: bee (it is one already), ccpm, or module:function of your own.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse what the original code refuses, such as a bare '<' or a number for a text."),
]


@contextmanager
def format_as_option() -> Iterator[None]:
    """A format that is none is a mistake on the command line here."""
    try:
        yield
    except SpecError as error:
        raise UsageError(f"--format: {error.message}", hint=error.hint) from error
