"""Check the invariants of a run after all faults."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import safetensors.torch

from cpmbee_job.launch.runs.verify import verify_run
from cpmbee_job.run.attempts import newest_attempt
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from tests.chaos.driver import Driver, Struck
from tests.integration.jobs import delta, metrics, numbers

STOPS = ("SIGTERM to a rank", "SIGTERM to the entrypoint")
PASSED_OVER = b"skipping the corrupt checkpoint of step"


@dataclass(frozen=True)
class KindFigures:
    """Of all faults of a kind. Steps and seconds: the mean and the most."""

    kind: str
    faults: int
    restarts: int
    lost_mean: float
    lost_max: int
    recovery_mean: float
    recovery_max: float


@dataclass
class Verdict:
    """Nothing was lost where `problems` is empty."""

    seed: str
    planned: int
    struck: int
    seconds: float
    steps: int
    executed: int
    """Steps, those that were done again too."""
    attempts: int
    pods: int
    kinds: list[KindFigures]
    all_kinds: KindFigures | None
    rows: int | None = None
    twice: int | None = None
    never: int | None = None
    delta_difference: float | None = None
    """The largest between an element of the last delta and the undisturbed one's; 0: the same bytes in all files."""
    problems: list[str] = field(default_factory=list)


def judge(driver: Driver, undisturbed: str, storage: StorageSpec, ended_early: str = "") -> Verdict:
    """`ended_early`: why the run has not come to its end, where it has not."""
    run, struck = driver.run, driver.struck
    kinds = [
        _figures(kind, [one for one in struck if one.fault.kind.name == kind])
        for kind in sorted({one.fault.kind.name for one in struck})
    ]
    verdict = Verdict(
        seed=driver.plan.seed,
        planned=len(driver.plan.faults),
        struck=len(struck),
        seconds=driver.elapsed,
        steps=driver.record.step,
        executed=driver.record.executed,
        attempts=newest_attempt(run.store),
        pods=driver.pods,
        kinds=kinds,
        all_kinds=_figures("all", struck) if struck else None,
        problems=[*driver.problems],
    )
    complain = verdict.problems.append
    if ended_early:
        complain(ended_early)
    if len(struck) < verdict.planned:
        complain(f"{verdict.planned - len(struck)} of {verdict.planned} faults were not carried out")
    for one in struck:
        if one.fault.kind.name in STOPS and one.lost and one.fault.moment != "starting":
            complain(f"fault {one.fault.number}: a stop cost {one.lost} steps")
    _judge_damage(driver, complain)
    result = run.result()
    if result is None or result["state"] != "succeeded":
        complain("the run has no result" if result is None else f"the run {result['state']}: {result['reason']}")
        return verdict
    _judge_curve(run, undisturbed, storage, complain)
    _judge_store(run, verdict, complain)
    verdict.delta_difference = _delta_difference(run.url, undisturbed, storage, complain)
    return verdict


def _figures(kind: str, struck: list[Struck]) -> KindFigures:
    lost = [one.lost for one in struck]
    seconds = [one.recovered_after for one in struck if one.recovered_after is not None] or [float("nan")]
    restarts = sum(one.restarts for one in struck)
    return KindFigures(kind, len(struck), restarts, mean(lost), max(lost), mean(seconds), max(seconds))


def _judge_damage(driver: Driver, complain: Any) -> None:
    """A checkpoint that does not hold is passed over, and that is said."""
    text = driver.log.read_bytes()
    for one in driver.struck:
        is_seen = one.fault.variant in ("altered", "cut", "no state") and one.valid_step < one.damaged_step
        if is_seen and one.recovered_after is not None and PASSED_OVER not in text[one.log_begin : one.log_end]:
            complain(f"fault {one.fault.number}: nothing was said of the damaged checkpoint")


def _judge_curve(run: Run, undisturbed: str, storage: StorageSpec, complain: Any) -> None:
    lines = [line["step"] for line in metrics(run.url, storage=storage)]
    if lines != sorted(set(lines)) or lines[-1:] != [len(lines)]:
        missing = sorted(set(range(1, max(lines, default=0) + 1)) - set(lines))
        again = [step for step, count in Counter(lines).items() if count > 1]
        complain(f"metrics.jsonl: steps {missing} are missing, {again} are there more than once")
    ours, theirs = numbers(run.url, storage), numbers(undisturbed, storage)
    if ours != theirs:
        first = next((one for one, other in zip(ours, theirs, strict=False) if one != other), "its length")
        complain(f"the curve is not the undisturbed one; the first difference is at {first}")


def _judge_store(run: Run, verdict: Verdict, complain: Any) -> None:
    report = verify_run(run)
    for problem in report.problems:
        complain(problem)
    if report.rows is None:
        complain(f"rows: {report.rows_problem}")
        return
    data = run.data()["train"]
    wanted = run.spec.train.epochs * data["rows"]
    verdict.rows, verdict.twice, verdict.never = report.rows.rows, len(report.rows.twice), len(report.rows.never)
    if report.rows.rows != wanted or report.rows.twice or report.rows.never:
        complain(f"{report.row_summary()}; {wanted:,} rows were to be seen")


def _delta_difference(run: str, undisturbed: str, storage: StorageSpec, complain: Any) -> float:
    most = 0.0
    for pointer in ("BEST", "LAST"):
        ours, theirs = delta(run, pointer, storage), delta(undisturbed, pointer, storage)
        if ours == theirs:
            continue
        complain(f"the delta of {pointer} does not have the bytes of the undisturbed one")
        tensors = [safetensors.torch.load(files["delta.safetensors"]) for files in (ours, theirs)]
        most = max(most, *(float((tensors[0][name] - tensors[1][name]).abs().max()) for name in tensors[0]))
    return most
