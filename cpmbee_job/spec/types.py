"""Types of the spec's fields."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

RESERVED_NAMES = {"inference", "prepared", "uploads"}
"""Folders of an output that do not contain runs of a job."""
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMK]i|[EPTGMkm])?$")]


def _is_place(url: str) -> str:
    if not re.fullmatch(r"s3://[A-Za-z0-9][\w.-]*(/.*)?|file:///.*|/.*|[^:/]+(/.*)?", url):
        raise ValueError("must have the form s3://bucket/folder/, file:///folder/ or a path")
    return url


def _is_object_name(name: str) -> str:
    if len(name) > 253 or not re.fullmatch(rf"{DNS_LABEL}(\.{DNS_LABEL})*", name):
        raise ValueError("must be the name of a Kubernetes object: lower case letters, digits, '-' and '.'")
    return name


Place = Annotated[str, AfterValidator(_is_place)]
ObjectName = Annotated[str, AfterValidator(_is_object_name)]


class Section(BaseModel):
    """Base of every section of the spec: immutable, without unknown keys. A field's docstring is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
