"""What of helm/cpmbee-job/ is generated: the schema of its values and their table in its README."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cpmbee_job.spec import JobSpec
from cpmbee_job.spec.types import NAME_PATTERN

CHART = Path(__file__).parents[1] / "helm" / "cpmbee-job"
BEGIN, END = "<!-- The table is written by `make docs` from values.yaml. -->\n", "<!-- End of the table. -->\n"
LARGEST = 2**53 - 1
"""Helm reads numbers as floating point: what is larger may become another number."""
JOB = {
    "schedule": {"type": "string", "minLength": 1, "description": "When it is run, as cron writes it."},
    "timeZone": {"type": "string", "minLength": 1, "description": "Of the schedule, like Asia/Shanghai."},
    "suspend": {"type": "boolean", "description": "Let the schedule rest."},
    "ifChanged": {"type": "boolean", "description": "Train only where inputs have changed since the last success."},
    "wait": {"type": "boolean", "description": "Let the launcher end with its run, and as its run does."},
}
"""What a job of the values has beside its `spec`."""


class Value(NamedTuple):
    """One line of the table: a key of values.yaml that has a comment."""

    path: tuple[str, ...]
    default: Any
    comment: str


def values() -> Iterator[Value]:
    """All of values.yaml. A key without a comment holds others; `ValueError` where it holds none."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    inside = -1  # the indentation of the value that the line is a part of
    for line in text.splitlines():
        key = re.match(r"( *)(\w+):(.*)", line)
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            comment = []
        elif indent > inside >= 0:
            continue
        elif line.lstrip().startswith("#"):
            inside = -1
            comment.append(line.strip("# "))
        elif key:
            parents = [parent for parent in parents if parent[0] < indent]
            path = (*(name for _, name in parents), key[2])
            inside = indent if comment else -1
            if comment:
                yield Value(path, _at(yaml.safe_load(text), path), " ".join(comment))
            elif key[3].strip():
                raise ValueError(f"values.yaml: {'.'.join(path)} has no comment")
            else:
                parents.append((indent, key[2]))
            comment = []


def values_schema() -> str:
    """Types come from the defaults, those of specs from `JobSpec`."""
    spec, sections = _job_spec()
    root = _section()
    for value in values():
        node = root
        for name in value.path[:-1]:
            node = node["properties"].setdefault(name, _section())
        node["properties"][value.path[-1]] = {**_type(value.default), "description": value.comment}
    properties = root["properties"]
    properties["global"] = {"type": "object", "description": "Helm's own."}
    properties["defaults"] |= {"$ref": "#/$defs/JobSpec"}
    of_job = {"spec": {"oneOf": [{"$ref": "#/$defs/JobSpec"}, {"type": "string"}]}, **JOB}
    properties["jobs"] |= {
        "propertyNames": {"pattern": NAME_PATTERN, "maxLength": 40},
        "additionalProperties": {**_section(), "properties": of_job, "required": ["spec"]},
    }
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **root, "$defs": {"JobSpec": spec, **sections}}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def readme() -> str:
    """The chart's README with the table as it should be."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in values():
        default = json.dumps(value.default, ensure_ascii=False)
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {value.comment} |")
    return head + BEGIN + "\n" + "\n".join(rows) + "\n\n" + END + rest.partition(END)[2]


def _job_spec() -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas of a spec and of its sections, where nothing is required: `defaults` may have it, and what is missing in
    the end the launcher says."""
    spec = copy.deepcopy(JobSpec.model_json_schema())
    sections = spec.pop("$defs")
    del spec["required"], sections["DataSpec"]["required"]
    for field in sections["TrainSpec"]["properties"].values():
        if field.get("exclusiveMaximum", 0) > LARGEST:
            del field["exclusiveMaximum"]
            field["maximum"] = LARGEST
    return spec, sections


def _section() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _type(default: Any) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    return {"type": names[type(default)]}


def _at(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        document = document[name]
    return document
