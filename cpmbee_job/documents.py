"""JSON documents: how every record is written, read back, checked and digested."""

import hashlib
import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json as parse_json

from cpmbee_job.errors import DamagedError

Number = Annotated[int, Field(ge=0, lt=1 << 63)]


def to_json(record: Any) -> bytes:
    """One JSON document, as every record is written: UTF-8, readable, newline at the end."""
    return (json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def from_json(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON document, whoever has written it. Raises `ValueError` for anything else, endless nesting and
    numbers of thousands of digits included."""
    document = parse_json(data, allow_inf_nan=False)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def digest(value: Any) -> str:
    """Hex digest (32 digits) of a JSON value; equal values have equal digests whatever the order of their keys."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def problem(error: ValueError) -> str:
    """What is wrong with a document and where, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))


class Record(BaseModel):
    """Base of what is read back from the store. Keys that it does not name may be there too: a newer release's, say."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: bytes, place: str) -> Self:
        """Raises `DamagedError`, naming `place` and the field, for what is no such record."""
        try:
            from_json(data)  # a key that it does not name may hold what is no JSON: `Infinity`, say
            return cls.model_validate_json(data)
        except ValueError as error:
            raise DamagedError(f"{place}: {problem(error)}") from error
