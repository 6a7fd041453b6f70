"""Kubernetes' quantities become numbers, and numbers words."""

from decimal import Decimal

import pytest

from cpmbee_job.launch.checks.quantities import parse_quantity, show_quantity


@pytest.mark.parametrize(
    ("text", "number"), [("500m", "0.5"), (4, "4"), ("1.5Gi", str(3 * 2**29)), ("2k", "2000"), ("1e3", "1000")]
)
def test_a_quantity_is_a_number(text, number):
    assert parse_quantity(text) == Decimal(number)


def test_what_is_none_is_said():
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
def test_people_read_memory_in_large_units(resource, number, shown):
    assert show_quantity(resource, Decimal(number)) == shown
