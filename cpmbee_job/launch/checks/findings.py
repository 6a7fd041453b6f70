"""Checks that run at once, and what each of them found."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cpmbee_job.errors import ClusterError, CpmbeeError
from cpmbee_job.launch.background import begin

CHECK_SECONDS = 30.0
"""How long a check may take before it counts as a problem."""

State = Literal["ok", "warning", "problem", "not_permitted"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. `problem`: something that the job needs is not there."""

    check: str
    state: State
    detail: str
    hint: str | None = None


Check = Callable[[], Iterable[Finding]]


def examine(checks: Mapping[str, Check], seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """Begin all checks at once; what they find comes in their order. A check that fails or hangs is a finding too."""
    deadline = time.monotonic() + seconds
    begun = {name: begin(partial(_listed, check)) for name, check in checks.items()}

    def findings() -> Iterator[Finding]:
        for name, outcome in begun.items():
            try:
                yield from outcome.result(max(deadline - time.monotonic(), 0.01))
            except TimeoutError:
                yield Finding(name, "problem", f"no answer within {seconds:g} s")
            except CpmbeeError as error:
                yield as_finding(name, error)

    return findings()


def as_finding(name: str, error: CpmbeeError) -> Finding:
    """What a check found that ended with this error."""
    return Finding(name, "not_permitted" if is_denied(error) else "problem", error.message, error.hint)


def is_denied(error: CpmbeeError) -> bool:
    """Whether the API knows who asks, and refuses because of that (an admission has other words)."""
    is_known = 'User "system:anonymous"' not in error.message
    return (
        is_known and isinstance(error, ClusterError) and re.search(r'cannot \S+ resource "', error.message) is not None
    )


def _listed(check: Check) -> list[Finding]:
    return list(check())
