"""Kubernetes' quantities, like `500m` and `16Gi`."""

import re
from decimal import Decimal

_FACTORS = {"n": "1e-9", "u": "1e-6", "m": "1e-3", "": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_FACTORS |= {"P": "1e15", "E": "1e18"}
_BINARY = {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}


def parse_quantity(text: str | int | float) -> Decimal:
    """The number that a quantity stands for. Raises `ValueError`."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]{0,2})", str(text))
    if match is None or match[2] not in _FACTORS | _BINARY:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(match[1]) * (_BINARY.get(match[2]) or Decimal(_FACTORS[match[2]]))


def show_quantity(resource: str, value: Decimal) -> str:
    """As a person reads it: memory and disk in Gi or Mi, the rest as plain numbers."""
    if value and ("memory" in resource or "storage" in resource):
        unit = "Gi" if abs(value) >= _BINARY["Gi"] else "Mi"
        return f"{_plain(value / _BINARY[unit])}{unit}"
    return _plain(value)


def _plain(value: Decimal) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
