"""The core install is light: verbs that encode, train or answer need what the package's extras bring."""

import re
from importlib import metadata

from cpmbee_job.errors import PreflightError

PACKAGE = "cpmbee-job"


def require(extra: str) -> None:
    """Raises `PreflightError` where a distribution of `extra` is missing; imports none of them."""
    missing = sorted(name for name, its_extra in _optional().items() if its_extra == extra and not _is_installed(name))
    if missing:
        raise _lacking(", ".join(missing), extra)


def explain(error: ModuleNotFoundError) -> PreflightError | None:
    """The error in words where an extra is not installed; None where the fault is another."""
    module = (error.name or "").partition(".")[0]
    for name, extra in _optional().items():
        if name.replace("-", "_") == module and not _is_installed(name):
            return _lacking(name, extra)
    return None


def _optional() -> dict[str, str]:
    """The extra that brings each distribution, as the package's own metadata have it."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its sources
        return {}
    found = (re.match(r"([\w.-]+).*;\s*extra\s*==\s*['\"]([\w-]+)", line) for line in requirements)
    return {match[1].lower(): match[2] for match in found if match}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _lacking(names: str, extra: str) -> PreflightError:
    return PreflightError(
        f"not installed: {names}",
        hint=f"this needs the extra [{extra}]; from the sources: `make setup`, or "
        f"`pip install --no-deps --require-hashes -r locks/train.txt`",
    )
