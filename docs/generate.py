"""Write what can be generated of docs/, k8s/ and helm/: `python docs/generate.py`, with `--check` only compare.

spec.md and job.schema.json come from the spec's model, cli.md from the command line's own help, the table of
metrics.md from the metrics' definitions, status.schema.json, list.schema.json and check.schema.json from what these
verbs print with --json; of k8s/ the roles from what the verbs ask, and beside each job.yaml what `render` makes of
it; helm/ has the same roles, and what chart.py writes.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import chart
import click
import typer.main
from pydantic import BaseModel

from cpmbee_job import cli
from cpmbee_job.data.check.scan import CheckReport
from cpmbee_job.errors import FINAL, ExitCode
from cpmbee_job.launch.kube.permissions import CLUSTER_PERMISSIONS, OPTIONAL_PERMISSIONS, PERMISSIONS, Permission, rules
from cpmbee_job.launch.manifest.render import default_run_id, render, to_yaml
from cpmbee_job.launch.runs.listing import Listing
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run.identity import training_fields
from cpmbee_job.spec import JobSpec, load_spec
from cpmbee_job.spec.reading import sections_of
from cpmbee_job.train.output.metrics import ENTRYPOINT, WORKERS

ROOT = Path(__file__).parents[1]
MANIFEST_NOTE = "# Written by `make docs` from cpmbee_job/launch/kube/permissions.py.\n"
PLACE = {"name", "output"}
"""With another one of these it is another run."""
NOTE = "<!-- Written by `make docs`; change the source it comes from instead. -->\n"
TABLE_NOTE = "<!-- The table is written by `make docs` from cpmbee_job/train/output/metrics.py. -->\n"


def spec_page() -> str:
    lines = [NOTE, "# The job spec", "", (JobSpec.__doc__ or "").strip(), ""]
    lines += ["A run that goes on refuses another value of what *stays*, and says what differs.", ""]
    lines += ["| field | default | when a run goes on | what it is |", "|---|---|---|---|"]
    lines += spec_rows(JobSpec, "")
    return "\n".join(lines) + "\n"


def spec_rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        sections = sections_of(field.annotation)
        if sections and sections[0] in (field.annotation, *get_args(field.annotation)):
            rows += spec_rows(sections[0], f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.default, ensure_ascii=False)}`"
        words = " ".join(filter(None, [field.description, choices(field.annotation)]))
        change = "stays" if stays(f"{prefix}{name}") else "may change"
        rows.append(f"| `{prefix}{name}` | {default} | {change} | {words.replace('|', chr(92) + '|')} |")
        for section in sections:
            rows += spec_rows(section, f"{prefix}{name}[].")
    return rows


def stays(key: str) -> bool:
    """Whether a run that goes on must have the same there."""
    section, _, _ = key.partition(".")
    fields = training_fields(load_spec(ROOT / "k8s" / "example" / "job.yaml"))
    return key in fields if section == "train" else section in {field.partition(".")[0] for field in fields} | PLACE


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
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(lines) + "\n"


def commands(command: Any, path: list[str]) -> list[tuple[list[str], Any]]:
    found = [(path, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += commands(inner, [*path, name])
    return found


def metrics_page() -> str:
    """The page as it is, with the table anew."""
    page = (ROOT / "docs/metrics.md").read_text()
    before, mark, rest = page.partition(TABLE_NOTE)
    _, blank, after = rest.partition("\n\n")
    rows = ["| metric | type | what it is |", "|---|---|---|"]
    for family in [*WORKERS.collect(), *ENTRYPOINT.collect()]:
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return before + mark + "\n".join(rows) + blank + after


def role(kind: str, name: str, *permissions: Permission) -> str:
    metadata = {"name": name}
    manifest = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata}
    return MANIFEST_NOTE + to_yaml(manifest | {"rules": rules(permissions)})


def role_rules(*permissions: Permission) -> str:
    """The part of a role that is the same wherever it is."""
    return MANIFEST_NOTE + to_yaml({"rules": rules(permissions)})


def example(path: Path) -> str:
    spec = load_spec(path)
    return to_yaml(render(spec, default_run_id(spec)))


def schema(model: type[BaseModel]) -> str:
    """Of what a verb prints with --json."""
    return json.dumps(model.model_json_schema(mode="serialization"), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    pages = {
        "docs/spec.md": spec_page(),
        "docs/job.schema.json": json.dumps(JobSpec.model_json_schema(), indent=2, ensure_ascii=False) + "\n",
        "docs/cli.md": cli_page(),
        "docs/metrics.md": metrics_page(),
        "docs/check.schema.json": schema(CheckReport),
        "docs/status.schema.json": schema(RunStatus),
        "docs/list.schema.json": schema(Listing),
        "k8s/base/role.yaml": role("Role", "cpmbee-job-user", *PERMISSIONS, *OPTIONAL_PERMISSIONS),
        "k8s/cluster-view/cluster-role.yaml": role("ClusterRole", "cpmbee-job-view", *CLUSTER_PERMISSIONS),
        "helm/cpmbee-job/files/role.yaml": role_rules(*PERMISSIONS, *OPTIONAL_PERMISSIONS),
        "helm/cpmbee-job/files/cluster-role.yaml": role_rules(*CLUSTER_PERMISSIONS),
        "helm/cpmbee-job/files/final-exit-codes.json": json.dumps(FINAL) + "\n",
        "helm/cpmbee-job/values.schema.json": chart.values_schema(),
        "helm/cpmbee-job/README.md": chart.readme(),
    }
    for job in sorted((ROOT / "k8s").rglob("job.yaml")):
        pages[str(job.with_name("pytorchjob.yaml").relative_to(ROOT))] = example(job)
    stale = [name for name, text in pages.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(stale)}: not what the code says; run `make docs`")
        return
    for name in stale:
        (ROOT / name).write_text(pages[name])


if __name__ == "__main__":
    main()
