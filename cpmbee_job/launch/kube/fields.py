"""Read the API's JSON, of which any part may be missing or have the wrong type."""

from datetime import UTC, datetime
from typing import Any

from cpmbee_job.launch.kube.protocol import Object

_LARGEST = 1e300
"""Larger integers may overflow a float."""


def object_at(item: Any, *path: str) -> Object:
    """Return the object at that path, {} if there is none."""
    found = _at(item, path)
    return found if isinstance(found, dict) else {}


def objects_at(item: Any, *path: str) -> list[Object]:
    """Return the objects in the list at that path."""
    found = _at(item, path)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text_at(item: Any, *path: str) -> str:
    """Return the text at that path, "" if there is none, without the control characters of terminals."""
    found = _at(item, path)
    if found is None or isinstance(found, dict | list):
        return ""
    return "".join(c for c in str(found) if c.isprintable() or c in "\n\t")


def one_line(item: Any, *path: str) -> str:
    """Return the text at that path with white space collapsed."""
    return " ".join(text_at(item, *path).split())


def number(item: Any, *path: str) -> float | None:
    found = _at(item, path)
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < _LARGEST
    return found if is_number else None


def integer(item: Any, *path: str) -> int | None:
    found = number(item, *path)
    return None if found is None else int(found)


def time_at(item: Any, *path: str) -> datetime | None:
    """Return the RFC 3339 time at that path, None if there is none."""
    try:
        found = datetime.fromisoformat(text_at(item, *path))
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)


def condition(item: Any, kind: str) -> Object:
    """Return the status condition of that type, {} if there is none."""
    return next((one for one in objects_at(item, "status", "conditions") if one.get("type") == kind), {})


def is_true(item: Any, kind: str) -> bool:
    return condition(item, kind).get("status") == "True"


def name_of(item: Any) -> str:
    return text_at(item, "metadata", "name")


def _at(item: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item
