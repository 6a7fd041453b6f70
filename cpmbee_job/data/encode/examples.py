"""Parse and validate examples.

An example is a dict whose values are texts or dicts of the same kind, with the answer under `<ans>`. Errors name the
path inside the example (`options.<option_0>`); the caller adds file and line.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

from cpmbee_job.errors import DataError

Example: TypeAlias = dict[str, "str | Example"]

ANSWER = "<ans>"
MAX_DEPTH = 64
"""Nesting limit; the model distinguishes only the first eight levels."""
MAX_SEGMENTS = 4096
"""Limit of keys and texts in an example; their relations are a table of that size squared."""

_KINDS: dict[type, str] = {
    list: "a list",
    tuple: "a list",
    bytes: "bytes",
    set: "a set",
    dict: "an object",
    str: "text",
}


def parse_object(line: bytes | str) -> dict[str, Any]:
    """Parse a line as a JSON object. Raises `DataError` for anything else and for a repeated key."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text ({error.reason} at byte {error.start + 1})", hint="save the file as UTF-8"
        ) from error
    try:
        document = _decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise DataError(f"nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise DataError(f"invalid JSON: {error}") from error  # a number of thousands of digits
    if not isinstance(document, dict):
        raise DataError(f"must be an object, not {_kind(document)}", hint='each line is one {"key": "text", ...}')
    return document


def check_example(raw: object, warnings: Counter[str] | None = None, *, strict: bool = False) -> Example:
    """Validate `raw` as an example. Raises `DataError` naming the path inside it.

    Numbers, booleans and null become their JSON text and are counted in `warnings`; `strict` rejects them.
    """
    if not isinstance(raw, dict):
        raise DataError(f"must be an object, not {_kind(raw)}")
    if ANSWER not in raw:
        raise DataError(f"the key {ANSWER} is missing", hint=f'put the answer, or "", under "{ANSWER}"')
    return _Checker(Counter() if warnings is None else warnings, strict).check_dict(raw, ())


def path_text(path: Iterable[object]) -> str:
    """Format a path inside an example: its keys joined with dots, long ones shortened."""
    keys = [str(key).encode("utf-8", "backslashreplace").decode() for key in path]
    return ".".join(key if len(key) <= 40 else f"{key[:39]}…" for key in keys)


def canonical_json(node: "str | Example") -> str:
    """Serialize an example, or a part of it, independently of the order of its keys."""
    return _CANONICAL.encode(node)


class _Checker:
    def __init__(self, warnings: Counter[str], strict: bool) -> None:
        self.warnings = warnings
        self.strict = strict
        self.num_segments = 1

    def check_dict(self, raw: dict[Any, Any], path: tuple[str, ...]) -> Example:
        if len(path) >= MAX_DEPTH:
            raise DataError(f"{path_text(path[:4])}…: nested more than {MAX_DEPTH} levels deep")
        example: Example = {}
        for key, value in raw.items():
            place = (*path, key)
            if not isinstance(key, str):
                raise DataError(f"{path_text(path) or 'the example'}: a key must be text, not {_kind(key)}")
            self.num_segments += 1
            if self.num_segments > MAX_SEGMENTS:
                raise DataError(f"more than {MAX_SEGMENTS} keys and texts in one example")
            _check_unicode(key, place)
            if isinstance(value, dict):
                example[key] = self.check_dict(value, place)
            else:
                self.num_segments += 1
                example[key] = self.check_text(value, place)
        return example

    def check_text(self, value: object, path: tuple[str, ...]) -> str:
        if isinstance(value, str):
            _check_unicode(value, path)
            return value
        if value is None or isinstance(value, bool | int | float):
            kind = _kind(value)
            if self.strict:
                raise DataError(f"{path_text(path)}: must be text, not {kind}", hint="put it in quotation marks")
            try:
                written = value.text if isinstance(value, _WrittenFloat) else json.dumps(value)
            except ValueError as error:
                raise DataError(f"{path_text(path)}: a number with thousands of digits") from error
            self.warnings[f"{kind} taken as text"] += 1
            return written
        hint = "join several texts into one, or make an object with a key for each"
        raise DataError(f"{path_text(path)}: must be text or an object, not {_kind(value)}", hint=hint)


def _check_unicode(text: str, path: tuple[str, ...]) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{path_text(path)}: invalid Unicode: half of a surrogate pair at character {error.start + 1}"
        raise DataError(message, hint="an emoji was probably split when the data was created") from error


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return _KINDS.get(type(value), type(value).__name__)


class _WrittenFloat(float):
    """A number that keeps its notation: 1.50 stays 1.50 when it becomes text."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> "_WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


class _RepeatedKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _RepeatedKeyError
    return document


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_WrittenFloat, parse_constant=_WrittenFloat)


class _Pairs(list[tuple[str, Any]]):
    """An object that keeps repeated keys."""


def _decode(text: str) -> Any:
    """Decode JSON. Raises `DataError` for a repeated key; a syntax error after it takes precedence."""
    try:
        return _DECODER.decode(text)
    except _RepeatedKeyError as error:
        try:
            path = _path_of_repeated(text)
        except RecursionError:
            path = "deeply nested"
        raise DataError(f"{path}: repeated key") from error


def _path_of_repeated(text: str) -> str:
    def search(node: object, path: tuple[object, ...]) -> tuple[object, ...] | None:
        if not isinstance(node, list):
            return None
        seen: set[object] = set()
        for index, item in enumerate(node):
            key, value = item if isinstance(node, _Pairs) else (index, item)
            if key in seen:
                return (*path, key)
            seen.add(key)
            found = search(value, (*path, key))
            if found is not None:
                return found
        return None

    return path_text(search(json.loads(text, object_pairs_hook=_Pairs), ()) or ())
