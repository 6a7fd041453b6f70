"""Kubernetes quantities are parsed and shown."""

from decimal import Decimal

import pytest

from cpmbee_job.launch.kube.quantities import parse_quantity, show_quantity


@pytest.mark.parametrize(
    ("text", "number"), [("500m", "0.5"), (4, "4"), ("1.5Gi", str(3 * 2**29)), ("2k", "2000"), ("1e3", "1000")]
)
def test_parses_a_quantity(text, number):
    assert parse_quantity(text) == Decimal(number)


def test_rejects_an_invalid_quantity():
    with pytest.raises(ValueError, match="4x"):
        parse_quantity("4x")


@pytest.mark.parametrize(
    ("resource", "number", "shown"),
    [
        ("memory", 3 * 2**29, "1.5Gi"),
        ("requests.memory", 0, "0"),
        ("cpu", Decimal("0.5"), "0.5"),
        ("memory", 2**20, "1Mi"),
    ],
)
def test_shows_memory_in_large_units(resource, number, shown):
    assert show_quantity(resource, Decimal(number)) == shown
