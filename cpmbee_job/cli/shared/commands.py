"""Add functions to the command line. Options may be grouped in dataclasses, which a function takes as one parameter."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup


def option(names: str, metavar: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """An option with a value, for `Annotated`. `names`: such as "--pod, -p"; `panel`: its group in the help."""
    return typer.Option(*names.split(", "), metavar=metavar, help=text, rich_help_panel=panel, **more)


def flag(names: str, text: str, panel: str | None = None) -> Any:
    """An option without a value, for `Annotated`."""
    return typer.Option(*names.split(", "), help=text, rich_help_panel=panel)


def argument(metavar: str, text: str, **more: Any) -> Any:
    """A positional argument, for `Annotated`."""
    return typer.Argument(metavar=metavar, help=text, **more)


class _WithoutTypes:
    """Removes `<bool>` after flags and `<str>` or `<path>` after arguments from the help."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda **_: None
            elif parameter.is_flag:
                parameter.metavar = ""
        return parameters


class _Command(_WithoutTypes, TyperCommand):
    pass


class _Group(_WithoutTypes, TyperGroup):
    pass


def new_app(text: str) -> typer.Typer:
    """A command line, or a command with subcommands; `text` is its help."""
    return typer.Typer(
        cls=_Group, help=text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )


def add_commands(app: typer.Typer, *commands: Callable[..., None], panel: str | None = None) -> None:
    """Add each function as a command of its name; its docstring is the help. `panel` is its group in the list.

    A parameter whose type is a dataclass stands for that dataclass's fields: each is an option or argument of its own.
    """
    for command in commands:
        paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        name = command.__name__.rstrip("_")
        app.command(name, cls=_Command, help=text, rich_help_panel=panel)(_flat(command))


def add_group(app: typer.Typer, name: str, text: str, *commands: Callable[..., None], panel: str) -> None:
    """Add functions as the subcommands of a command."""
    group = new_app(text)
    add_commands(group, *commands)
    app.add_typer(group, name=name, rich_help_panel=panel)


def _flat(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap `command` to take the fields of its option groups one by one."""
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(command)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    parameters = list(_parameters(command))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(of: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a function or dataclass, with the fields of option groups in place of the groups."""
    hints = get_type_hints(of, include_extras=True)
    for name, parameter in inspect.signature(of).parameters.items():
        if is_dataclass(hints[name]):
            yield from _parameters(hints[name])
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
