"""Freeze the interface: each command, its arguments and options with their types and defaults, but no help text.

After an intended change: `UPDATE_GOLDEN=1 pytest tests/unit/cli/test_interface.py`.
"""

import json
import os
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.main

from cpmbee_job.cli import app
from tests.paths import GOLDEN

FILE = GOLDEN / "cli.json"


def interface(command: Any, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each command's path and its parameters: arguments by their position, options by their names."""
    inner = getattr(command, "commands", {})
    for name in sorted(inner):
        yield from interface(inner[name], f"{path} {name}")
    options = [one for one in command.params if one.param_type_name == "option"]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    described = {f"argument {number}": describe(one) for number, one in enumerate(arguments, start=1)}
    yield path, described | {names: describe(one) for names, one in sorted((all_names(one), one) for one in options)}


def all_names(option: Any) -> str:
    return ", ".join([*option.opts, *option.secondary_opts])


def describe(parameter: Any) -> str:
    choices = parameter.type_descriptor.choices
    shown = [choice.value if isinstance(choice, Enum) else choice for choice in choices or ()]
    facts = {
        "default": parameter.default.value if isinstance(parameter.default, Enum) else parameter.default,
        "minimum": parameter.min,
        "maximum": parameter.max,
        "environment": parameter.envvar,
        "required": parameter.required or None,
        "repeatable": getattr(parameter, "multiple", None) or None,
    }
    kind = "|".join(map(str, shown)) if shown else parameter.bare_type()
    return ", ".join([kind, *(f"{name}={value}" for name, value in facts.items() if value is not None)])


def test_commands_and_options_are_those_of_the_golden_file() -> None:
    found = dict(interface(typer.main.get_command(app), "cpmbee-job"))
    if "UPDATE_GOLDEN" in os.environ:
        FILE.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(FILE.read_text(encoding="utf-8"))
