"""JSON documents in the object store: how they are written, read, validated and digested."""

import hashlib
import json
import time
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json as parse_json

from cpmbee_job.errors import DamagedError

Number = Annotated[int, Field(ge=0, lt=1 << 63)]


def to_json(document: Any) -> bytes:
    """Encode a document: UTF-8, indented, with a final newline."""
    return (json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def from_json(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON object from an untrusted source. Raises `ValueError`, also for endless nesting and for numbers of
    thousands of digits."""
    document = parse_json(data, allow_inf_nan=False)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def digest(value: Any) -> str:
    """Hex digest (32 digits) of a JSON value, independent of the order of its keys."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def now() -> str:
    """Return the time in UTC, as documents contain it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def problem(error: ValueError) -> str:
    """One line that says what is wrong with a document, and where."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))


class Document(BaseModel):
    """Base of documents that are read from the store. Unknown keys are allowed: a newer release may write them."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: bytes, place: str) -> Self:
        """Parse and validate. Raises `DamagedError` with `place` and the invalid field."""
        try:
            from_json(data)  # an unknown key may hold invalid JSON, such as `Infinity`
            return cls.model_validate_json(data)
        except ValueError as error:
            raise DamagedError(f"{place}: {problem(error)}") from error
