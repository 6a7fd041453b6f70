"""Two runs side by side: in what their specs and data differ, and how well they did."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cpmbee_job.errors import NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import EvalScore, read_delta
from cpmbee_job.run.pointers import read_delta_pointer
from cpmbee_job.run.resumable import flatten
from cpmbee_job.run.run import Run


@dataclass(frozen=True)
class RunSummary:
    """What a run has come to; None where it has not."""

    url: str
    state: str | None
    steps: int | None
    best_step: int | None
    duration_s: float | None
    world_size: int | None
    base_digest: str | None
    scores: dict[str, EvalScore]
    """Of its best delta, by eval digest."""


@dataclass(frozen=True)
class Difference:
    """A field and its values in the two; None where one of them has no such field."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    first: RunSummary
    second: RunSummary
    spec: tuple[Difference, ...]
    data: tuple[Difference, ...]
    """Between what they were bound to; nothing where one of them is not yet."""

    @property
    def scores(self) -> dict[str, tuple[EvalScore | None, EvalScore | None]]:
        """Side by side, by eval digest; those that both have first."""
        digests = sorted(
            {**self.first.scores, **self.second.scores},
            key=lambda digest: not (digest in self.first.scores and digest in self.second.scores),
        )
        return {digest: (self.first.scores.get(digest), self.second.scores.get(digest)) for digest in digests}

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def compare(first: Run, second: Run) -> Comparison:
    """Raises `DamagedError` for a delta whose manifest can't be read."""
    return Comparison(
        _summary(first),
        _summary(second),
        _differences(first.spec.model_dump(mode="json"), second.spec.model_dump(mode="json")),
        _differences(*data) if (data := (_data(first), _data(second))) and all(data) else (),
    )


def _summary(run: Run) -> RunSummary:
    result = run.result() or {}
    scores = result.get("scores") or {}
    try:
        of_delta = read_delta(run.store, read_delta_pointer(run.store, keys.BEST)).scores
    except NotFoundError:
        of_delta = {}
    return RunSummary(
        run.url,
        result.get("state"),
        result.get("steps"),
        scores.get("best_step"),
        result.get("duration_s"),
        result.get("world_size"),
        (result.get("digests") or {}).get("base"),
        of_delta,
    )


def _data(run: Run) -> dict[str, Any]:
    try:
        return run.data()
    except NotFoundError:
        return {}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Difference, ...]:
    one, other = flatten(first), flatten(second)
    return tuple(
        Difference(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)
    )
