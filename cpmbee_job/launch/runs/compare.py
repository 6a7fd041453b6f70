"""Compare two runs: their specs, their data, and how well they did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpmbee_job.errors import NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import EvalScore, read_delta, read_delta_pointer
from cpmbee_job.run.identity import flatten
from cpmbee_job.run.run import Run


@dataclass(frozen=True)
class RunSummary:
    """The results of a run; None for what it does not have (yet)."""

    url: str
    state: str | None
    steps: int | None
    best_step: int | None
    duration_s: float | None
    world_size: int | None
    base_digest: str | None
    scores: dict[str, EvalScore]
    """Scores of its best delta, by eval digest."""


@dataclass(frozen=True)
class Difference:
    """A field and its values in the two runs; None for a missing field."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    first: RunSummary
    second: RunSummary
    spec: tuple[Difference, ...]
    data: tuple[Difference, ...]
    """Differences of the prepared data; empty if one of the runs has none yet."""

    @property
    def scores(self) -> dict[str, tuple[EvalScore | None, EvalScore | None]]:
        """Pairs of scores by eval digest; those that both runs have come first."""
        first, second = self.first.scores, self.second.scores
        digests = sorted({**first, **second}, key=lambda digest: not (digest in first and digest in second))
        return {digest: (first.get(digest), second.get(digest)) for digest in digests}


def compare(first: Run, second: Run) -> Comparison:
    """Compare two runs. Raises `DamagedError` for a delta whose manifest cannot be read."""
    data = _data(first), _data(second)
    return Comparison(
        _summarize(first),
        _summarize(second),
        _differences(first.spec.model_dump(mode="json"), second.spec.model_dump(mode="json")),
        _differences(*data) if all(data) else (),
    )


def _summarize(run: Run) -> RunSummary:
    result = run.result() or {}
    try:
        scores = read_delta(run.store, read_delta_pointer(run.store, keys.BEST)).scores
    except NotFoundError:
        scores = {}
    return RunSummary(
        url=run.url,
        best_step=(result.get("scores") or {}).get("best_step"),
        base_digest=(result.get("digests") or {}).get("base"),
        scores=scores,
        **{key: result.get(key) for key in ("state", "steps", "duration_s", "world_size")},
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
