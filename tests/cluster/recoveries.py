"""Measure from the store when a disturbed run resumes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cpmbee_job.errors import NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.store.base import Store
from tests.cluster.kubectl import eventually


@dataclass(frozen=True)
class Recovery:
    """Recovery of a run after a fault; times in seconds from the fault."""

    fault: str
    step: float
    """First step of a later attempt in the store."""
    whole: float
    """First step in the store of an attempt with all requested workers."""
    again: int
    """Steps in the store that were repeated."""


RECOVERIES = pytest.StashKey[list[Recovery]]()


def table(recoveries: list[Recovery]) -> str:
    """Return the row for the table in the documentation."""
    lines = ["| fault | next step | with all workers | steps repeated |", "|---|---|---|---|"]
    lines += [f"| {found.fault} | {found.step:.0f} s | {found.whole:.0f} s | {found.again} |" for found in recoveries]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Training:
    """A run that trains, as its store shows it."""

    store: Store

    def steps(self) -> list[dict[str, Any]]:
        """Its metrics: a line for each step."""
        lines = map(json.loads, self._read(keys.METRICS).splitlines())
        return [line for line in lines if line["event"] == "step"]

    def attempt(self) -> int:
        """That of the newest step, 0 before the first."""
        steps = self.steps()
        return steps[-1]["attempt"] if steps else 0

    def has(self, workers: int, after: int = 0) -> bool:
        """Whether the newest step is one of so many workers, and of an attempt after that one."""
        attempt = self.attempt()
        return attempt > after and json.loads(self._read(keys.attempt_key(attempt)))["world_size"] == workers

    def is_under_way(self, workers: int) -> bool:
        """Whether so many workers have also written a checkpoint."""
        return self.has(workers) and json.loads(self._read(keys.LATEST) or "{}").get("attempt") == self.attempt()

    def recovery(self, fault: str, do: Callable[[], object], workers: int) -> Recovery:
        """Call `do` and wait until the run resumes with this many workers."""
        before, last, began = self.attempt(), 0, time.monotonic()

        def has_gone_on() -> bool:
            nonlocal last
            steps = self.steps()
            last = max([last, *(line["step"] for line in steps if line["attempt"] <= before)])
            return bool(steps and steps[-1]["attempt"] > before)

        do()
        eventually(has_gone_on, f"a step after {fault}")
        step = time.monotonic() - began
        first = next(line["step"] for line in self.steps() if line["attempt"] > before)
        eventually(lambda: self.has(workers, after=before), f"a step of {workers} workers after {fault}")
        return Recovery(fault, step, time.monotonic() - began, last - first + 1)

    def _read(self, key: str) -> bytes:
        """Nothing where there is no such object yet."""
        try:
            return self.store.get(key)
        except NotFoundError:
            return b""
