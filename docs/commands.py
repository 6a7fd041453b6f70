"""Render the reference pages of the commands from the command line's own help."""

import re
from collections.abc import Iterator
from typing import Any

import click
import typer.main

from cpmbee_job import cli

PROGRAM = "cpmbee-job"
FOLDER = "docs/reference/cli"


def pages(note: str) -> dict[str, str]:
    """Return the page of each command, and an index of them, by its path in the repository. Each begins with `note`."""
    found = list(_commands(typer.main.get_command(cli.app), []))
    rendered = {f"{FOLDER}/{'-'.join(names)}.md": note + "\n" + _page(names, command) for names, command in found}
    return {f"{FOLDER}/index.md": note + "\n" + _index(found), **rendered}


def _commands(group: Any, names: list[str]) -> Iterator[tuple[list[str], Any]]:
    """All commands that do something, with the names that lead to them. A group only holds others."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, [*names, name])
        else:
            yield [*names, name], command


def _index(found: list[tuple[list[str], Any]]) -> str:
    root = typer.main.get_command(cli.app)
    lines = ["# Commands", "", _markdown(root.help or ""), "", "| command | what it does |", "|---|---|"]
    for names, command in found:
        lines.append(f"| [`{' '.join(names)}`]({'-'.join(names)}.md) | {_markdown(_paragraphs(command)[0])} |")
    lines += ["", "```{toctree}", ":hidden:", "", *("-".join(names) for names, _ in found), "```", ""]
    lines += ["[Exit codes](../exit-codes.md) are the same for all commands.", "", "## Options without a command", ""]
    return "\n".join([*lines, *_options(root, PROGRAM)]) + "\n"


def _page(names: list[str], command: Any) -> str:
    path = f"{PROGRAM} {' '.join(names)}"
    context = click.Context(command, info_name=path)
    lines = [f"# `{path}`", ""]
    for paragraph in _paragraphs(command):
        example = re.fullmatch(r"Examples?:\s*(.*)", paragraph, re.DOTALL)
        lines += ["```bash", example[1], "```", ""] if example else [_markdown(paragraph), ""]
    lines += ["## Usage", "", "```text", f"{path} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    return "\n".join([*lines, *_options(command, path)]) + "\n"


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def _options(command: Any, path: str) -> list[str]:
    """A table of arguments and options for each panel of the help."""
    context = click.Context(command, info_name=path)
    tables: dict[str, list[str]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            name, text = record
            panel = getattr(parameter, "rich_help_panel", None) or "Arguments and options"
            tables.setdefault(panel, []).append(f"| `{_cell(name)}` | {_cell(' '.join(_description(text)))} |")
    lines = []
    for panel, rows in tables.items():
        lines += ["", f"### {panel}", "", "| name | what it does |", "|---|---|", *rows]
    return lines[1:]


def _description(text: str) -> Iterator[str]:
    """The help of an option as sentences: `Text.  [default: 1; required]` has its properties at the end."""
    found = re.fullmatch(r"(.*?)(?:(?:^|  )\[([^\[]*(?:\[.*\])?[^\[]*)\])?", text, re.DOTALL)
    assert found is not None
    yield _markdown(found[1])
    for item in (found[2] or "").split("; "):
        key, colon, value = item.partition(": ")
        if item == "required":
            yield "Required."
        elif colon:
            yield f"{key.capitalize().replace('Env var', 'Environment variable')}: `{value}`."
        elif item:
            yield f"Range: `{item}`."


def _markdown(text: str) -> str:
    """Plain text as Markdown, with links to the pages that it names."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([\\*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"docs/([\w/.\-\\]+\.(?:md|json))", lambda found: _link(found[1].replace("\\", "")), "".join(parts))


def _link(page: str) -> str:
    return f"[{page.rpartition('/')[2]}](../../{page})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
