"""Report missing optional dependencies. The core install is light; encoding, training and inference need extras."""

import re
from importlib import metadata

from cpmbee_job.errors import PreflightError


def require(extra: str) -> None:
    """Raises `PreflightError` if a distribution of `extra` is not installed. Imports none of them."""
    missing = sorted(name for name, its_extra in _missing().items() if its_extra == extra)
    if missing:
        raise _not_installed(", ".join(missing), extra)


def explain(error: ModuleNotFoundError) -> PreflightError | None:
    """Name the extra that is not installed. None if the error has another cause."""
    module = (error.name or "").partition(".")[0]
    for name, extra in _missing().items():
        if name.replace("-", "_") == module:
            return _not_installed(name, extra)
    return None


def _missing() -> dict[str, str]:
    """The optional distributions that are not installed, and their extras, from the package's own metadata."""
    try:
        requirements = metadata.requires("cpmbee-job") or []
    except metadata.PackageNotFoundError:  # run from the source tree
        return {}
    found = (re.match(r"([\w.-]+).*;\s*extra\s*==\s*['\"]([\w-]+)", line) for line in requirements)
    extras = {match[1].lower(): match[2] for match in found if match}
    return {name: extra for name, extra in extras.items() if not any(metadata.distributions(name=name))}


def _not_installed(names: str, extra: str) -> PreflightError:
    return PreflightError(
        f"not installed: {names}",
        hint=f"install the extra [{extra}]; from the source tree: `make setup`, or "
        f"`pip install --no-deps --require-hashes -r locks/train.txt`",
    )
