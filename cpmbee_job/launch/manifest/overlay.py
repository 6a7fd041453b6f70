"""Merge the spec's pod overlay, a partial pod template, into ours."""

from typing import Any

from cpmbee_job.errors import SpecError

NAMED_BY = {"volumeMounts": "mountPath", "ports": "containerPort", "tolerations": "key"}
"""The keys that identify the items of a list; the default is `name`."""


def merge(base: Any, overlay: Any, where: str) -> Any:
    """Return `base` merged with `overlay`; both stay unchanged.

    Mappings are merged by key; null removes a key. Lists are merged by the name of their items, with new items at the
    end. All other values are replaced. Raises `SpecError` with the path below `where` if the types differ.
    """
    if isinstance(overlay, dict):
        if not isinstance(base, dict | None):
            raise SpecError(f"{where}: must be {_kind(base)} (got a mapping)")
        merged = dict(base or {})
        for key, value in overlay.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(merged.get(key), value, f"{where}.{key}")
        return merged
    if isinstance(overlay, list):
        if not isinstance(base, list | None):
            raise SpecError(f"{where}: must be {_kind(base)} (got a list)")
        return _merge_lists(base or [], overlay, where)
    if isinstance(base, dict | list):
        raise SpecError(f"{where}: must be {_kind(base)} (got {overlay!r})")
    return overlay


def _merge_lists(base: list[Any], overlay: list[Any], where: str) -> list[Any]:
    key = NAMED_BY.get(where.rpartition(".")[2], "name")
    names, changes = _names(base, key), _names(overlay, key)
    if changes is None:
        return [merge(None, item, f"{where}[{index}]") for index, item in enumerate(overlay)]
    if names is None:
        base, names = [], []
    changed = dict(zip(changes, overlay, strict=True))
    known = dict(zip(names, base, strict=True))
    return [
        merge(item, changed[name], f"{where}[{name}]") if name in changed else item for name, item in known.items()
    ] + [merge(None, item, f"{where}[{name}]") for name, item in changed.items() if name not in known]


def _names(items: list[Any], key: str) -> list[Any] | None:
    """Return the names of the items; None if they are missing or not unique."""
    names = [item.get(key) if isinstance(item, dict) else None for item in items]
    return None if None in names or len(set(map(str, names))) < len(names) else names


def _kind(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a scalar"
