"""Run checks at the same time, and collect their results."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cpmbee_job.errors import ClusterError, CpmbeeError
from cpmbee_job.launch.background import begin
from cpmbee_job.launch.kube.protocol import Cluster, Object


@dataclass(frozen=True)
class CheckResult:
    """One line of `doctor`."""

    check: str
    state: Literal["ok", "warning", "problem", "not_permitted"]
    """`problem`: the job cannot run. `not_permitted`: this user may not read what the check needs."""
    detail: str
    hint: str | None = None
    """How to fix it."""


Check = Callable[[], Iterable[CheckResult]]


def run_checks(checks: Mapping[str, Check], seconds: float = 30.0) -> Iterator[CheckResult]:
    """Start all checks at once and return their results in order. A check that fails, or has no result after `seconds`,
    is a result too."""
    deadline = time.monotonic() + seconds
    started = {name: begin(partial(_run, check)) for name, check in checks.items()}

    def results() -> Iterator[CheckResult]:
        for name, future in started.items():
            try:
                yield from future.result(max(deadline - time.monotonic(), 0.01))
            except TimeoutError:
                yield CheckResult(name, "problem", f"no answer within {seconds:g} s")
            except CpmbeeError as error:
                yield from_error(name, error)

    return results()


def from_error(name: str, error: CpmbeeError) -> CheckResult:
    """Return the result of a check that raised `error`."""
    return CheckResult(name, "not_permitted" if is_denied(error) else "problem", error.message, error.hint)


def is_denied(error: CpmbeeError) -> bool:
    """Return whether RBAC denies the request to an authenticated user. Refusals by admission read differently."""
    if not isinstance(error, ClusterError) or 'User "system:anonymous"' in error.message:
        return False
    return re.search(r'cannot \S+ resource "', error.message) is not None


def list_permitted(
    cluster: Cluster, kind: str, fields: str = "", *, all_namespaces: bool = False
) -> tuple[list[Object], str | None]:
    """List objects of a kind. Returns none, and the message, if this user may not list them."""
    try:
        return list(cluster.list(kind, fields=fields, all_namespaces=all_namespaces)), None
    except ClusterError as error:
        if not is_denied(error):
            raise
        return [], error.message


def _run(check: Check) -> list[CheckResult]:
    return list(check())
