"""Read and show Kubernetes quantities, like `500m` and `16Gi`."""

from decimal import Decimal

_GI, _MI = 2**30, 2**20


def parse_quantity(text: str | float) -> Decimal:
    """Return the number that a quantity stands for. Raises `ValueError` for an invalid one."""
    from kubernetes import utils  # slow to import, and not required to submit

    return Decimal(utils.parse_quantity(text))


def show_quantity(resource: str, value: Decimal) -> str:
    """Format the amount of a resource: memory and storage in Gi or Mi, others as plain numbers."""
    if value and ("memory" in resource or "storage" in resource):
        unit, name = (_GI, "Gi") if abs(value) >= _GI else (_MI, "Mi")
        return f"{_plain(value / unit)}{name}"
    return _plain(value)


def _plain(value: Decimal) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
