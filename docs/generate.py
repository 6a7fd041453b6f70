"""Write what of the documentation can be generated: `python docs/generate.py`, with `--check` only compare.

spec.md and job.schema.json come from the spec's model, cli.md from the command line's own help.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import typer.main
from pydantic import BaseModel

from cpmbee_job import cli
from cpmbee_job.spec import JobSpec

DOCS = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; change the source it comes from instead. -->\n"


def spec_page() -> str:
    lines = [NOTE, "# The job spec", "", (JobSpec.__doc__ or "").strip(), ""]
    lines += ["| field | default | what it is |", "|---|---|---|"]
    lines += spec_rows(JobSpec, "")
    return "\n".join(lines) + "\n"


def spec_rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += spec_rows(field.annotation, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.default, ensure_ascii=False)}`"
        words = " ".join(filter(None, [field.description, choices(field.annotation)]))
        rows.append(f"| `{prefix}{name}` | {default} | {words.replace('|', chr(92) + '|')} |")
    return rows


def choices(annotation: Any) -> str:
    """The values that a field takes where they can be counted."""
    values = get_args(annotation) if get_origin(annotation) is Literal else ()
    for inner in get_args(annotation) if not values else ():
        values += get_args(inner) if get_origin(inner) is Literal else ()
    return f"One of {', '.join(f'`{value}`' for value in values)}." if len(values) > 1 else ""


def cli_page() -> str:
    root = typer.main.get_command(cli.app)
    lines = [NOTE, "# The command line", ""]
    for path, command in commands(root, ["cpmbee-job"]):
        context = click.Context(command, info_name=" ".join(path), max_content_width=100, terminal_width=100)
        lines += [f"## `{' '.join(path)}`", "", "```", command.get_help(context), "```", ""]
    return "\n".join(lines)


def commands(command: Any, path: list[str]) -> list[tuple[list[str], Any]]:
    found = [(path, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += commands(inner, [*path, name])
    return found


def main() -> None:
    pages = {
        "spec.md": spec_page(),
        "job.schema.json": json.dumps(JobSpec.model_json_schema(), indent=2, ensure_ascii=False) + "\n",
        "cli.md": cli_page(),
    }
    stale = [name for name, text in pages.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"docs/{', docs/'.join(stale)}: not what the code says; run `make docs`")
        return
    for name in stale:
        (DOCS / name).write_text(pages[name])


if __name__ == "__main__":
    main()
