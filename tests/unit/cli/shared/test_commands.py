from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner, Result

from cpmbee_job.cli.shared.commands import add_commands, argument, flag, new_app, option


@dataclass(frozen=True)
class Place:
    path: Annotated[Path, argument("PATH", "A path.")]
    name: Annotated[str | None, option("--name, -n", "NAME", "A name.")] = None


@dataclass(frozen=True)
class NumberedPlace(Place):
    number: Annotated[int, option("--number", "N", "A number.", min=1)] = 3


def show(
    place: NumberedPlace,
    suffix: Annotated[str, argument("SUFFIX", "A suffix.")],
    loud: Annotated[bool, flag("--loud", "Shout.")] = False,
) -> None:
    """Show the arguments.

    Line one,
    line two.
    """
    typer.echo(f"{place} {suffix} {loud}")


def run(*arguments: str) -> Result:
    app = new_app("Help.")
    app.callback()(lambda: None)
    add_commands(app, show)
    return CliRunner().invoke(app, arguments, standalone_mode=False, color=False)


def test_a_group_is_one_parameter_and_several_options() -> None:
    assert run("show", "a", "b", "-n", "c", "--loud").output == f"{NumberedPlace(Path('a'), 'c', 3)} b True\n"


def test_options_of_a_group_are_validated() -> None:
    error = run("show", "a", "b", "--number", "0").exception
    assert isinstance(error, typer.BadParameter)
    assert "--number" in error.format_message()


def test_a_paragraph_of_the_docstring_is_one_line_of_the_help() -> None:
    assert "Line one, line two." in run("show", "--help").output
