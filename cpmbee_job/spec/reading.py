"""Parse spec files. Errors name the file and the dotted key."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cpmbee_job.errors import SpecError, UsageError
from cpmbee_job.spec.job import JobSpec
from cpmbee_job.spec.strict_yaml import StrictLoader
from cpmbee_job.spec.training import KINDS_OF_TRAIN

_LONGEST_VALUE = 200
"""Characters of an invalid value in an error message."""


def load_spec(path: Path, overrides: Iterable[str] = ()) -> JobSpec:
    """Read a spec file, apply `--set` overrides, and resolve paths relative to the file. Raises `SpecError`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}", hint="`cpmbee-job init` writes an example") from error
    return parse_spec(text, source=str(path), overrides=overrides, base=path.absolute().parent)


def parse_spec(text: str | bytes, *, source: str, overrides: Iterable[str] = (), base: Path | None = None) -> JobSpec:
    """Parse a spec. `source` names it in errors; relative paths are resolved against `base`, if given."""
    try:
        text = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        document = yaml.load(text, Loader=StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{source}: must be a mapping of keys to values (got {type(document).__name__})")
    for override in overrides:
        _apply_override(document, override)
    if base is not None:
        _absolute_paths(document, base)
    try:
        return JobSpec.model_validate_json(json.dumps(document))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise SpecError(f"{source}: {error}", hint="use strings, numbers, true/false, lists, mappings") from error
        problems = [_describe(problem) for problem in error.errors()]
        raise SpecError("\n".join(f"{source}: {problem}" for problem in problems)) from error


def known_keys(model: type[BaseModel] = JobSpec, prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys of the spec."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in sections_of(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.")


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections in a field's type, including those of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in sections_of(inner)]


def _describe(problem: Mapping[str, Any]) -> str:
    """Format a pydantic error as `dotted.key: what is wrong (got value)`."""
    location = [str(part) for part in problem["loc"] if part not in KINDS_OF_TRAIN]
    if problem["type"] == "extra_forbidden":
        key = ".".join(location)
        return f"{key}: unknown key{_nearest(key)}"
    key, field = _locate(location)
    key = key or "(the spec)"
    if problem["type"] == "missing":
        return f"{key}: required, but missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch" and field is not None:
        message = f"has an invalid form ({' '.join(str(field.description).split()).rstrip('.')})"
    value = problem.get("input")
    if isinstance(value, dict) or problem["type"] == "secret":
        return f"{key}: {message}"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{key}: {message} (got {shown if len(shown) <= _LONGEST_VALUE else f'{shown[:_LONGEST_VALUE]}…'})"


def _locate(location: Iterable[str]) -> tuple[str, FieldInfo | None]:
    """Return the dotted key at which an error occurred, and its field. Parts of the location that are not in the
    document are dropped, such as members of a union (`literal['auto']`)."""
    keys: list[str] = []
    field: FieldInfo | None = None
    sections: list[type[BaseModel]] = [JobSpec]
    for part in location:
        section = next((section for section in sections if part in section.model_fields), None)
        is_mapping = field is not None and get_origin(field.annotation) is dict
        if section is not None:
            field = section.model_fields[part]
            sections = sections_of(field.annotation)
        elif not (part.isdigit() or is_mapping):
            break
        keys.append(part)
        if section is None and is_mapping:
            break
    return ".".join(keys), field


def _nearest(key: str) -> str:
    keys = list(known_keys())
    section, _, leaf = key.rpartition(".")
    parent = ".".join(part for part in section.split(".") if not part.isdigit())
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5):
        return f"; did you mean {section}{'.' * bool(section)}{close[0]}?"
    if elsewhere := [k for k in keys if k.rpartition(".")[2] == leaf]:
        return f"; did you mean {elsewhere[0]}?"
    return f"; valid keys: {', '.join(siblings)}" if siblings else ""


def _apply_override(document: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set {override}: must have the form path.to.field=value")
    node: Any = document
    for index, key in enumerate(keys[:-1]):
        inner = _member_of(node, key, override)
        if inner is None:
            inner = node[key] = {}
        if not isinstance(inner, dict | list):
            raise SpecError(f"--set {override}: {'.'.join(keys[: index + 1])} is not a section")
        node = inner
    try:
        new = yaml.load(value, Loader=StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not valid YAML") from error
    _member_of(node, keys[-1], override)
    node[int(keys[-1]) if isinstance(node, list) else keys[-1]] = new


def _member_of(node: Any, key: str, override: str) -> Any:
    """Return the member with a key or an index; None for a new key. Raises `SpecError` for an invalid index."""
    if isinstance(node, dict):
        return node.get(key)
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(node):
        raise SpecError(f"--set {override}: '{key}' is not an index of this list with {len(node)} members")
    return node[int(key)]


def _absolute_paths(document: dict[str, Any], base: Path) -> None:
    data, lora = document.get("data"), document.get("lora")
    places: list[tuple[Any, str]] = [(document, "model"), (document, "output")]
    places += [(data, "train"), (data, "eval"), (lora, "init_from")]
    sets = data.get("train") if isinstance(data, dict) else None
    places += [(one, "path") for one in sets] if isinstance(sets, list) else []
    for section, key in places:
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            section[key] = str(base / value) + ("/" if value.endswith("/") else "")
