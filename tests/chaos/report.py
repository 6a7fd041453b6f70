"""A verdict as a table on the terminal, and as the measured part of docs/explanation/reliability.md."""

from pathlib import Path

from rich.table import Table

from tests.chaos.judge import KindFigures, Verdict

COLUMNS = ("fault", "times", "restarts", "steps lost: mean", "most", "s to recover: mean", "most")
BEGIN, END = "<!-- measured: written by `python -m tests.chaos --write` -->", "<!-- /measured -->"


def table(verdict: Verdict) -> Table:
    grid = Table(*COLUMNS, title=f"chaos, seed {verdict.seed}", caption="\n".join(sentences(verdict)))
    for figures in verdict.kinds:
        grid.add_row(*_cells(figures))
    if verdict.all_kinds is not None:
        grid.add_section()
        grid.add_row(*_cells(verdict.all_kinds))
    return grid


def sentences(verdict: Verdict) -> list[str]:
    difference = verdict.delta_difference
    deltas = "not compared" if difference is None else f"{difference:g}" if difference else "none, the same bytes"
    return [
        f"{verdict.struck} of {verdict.planned} faults in {verdict.seconds / 60:.0f} minutes (seed {verdict.seed}): "
        f"{verdict.attempts} attempts in {verdict.pods} pods",
        f"{verdict.steps:,} steps, {max(0, verdict.executed - verdict.steps):,} repeated",
        f"packed rows seen twice in an epoch: {_count(verdict.twice)}, never: {_count(verdict.never)}, total: "
        f"{_count(verdict.rows)}",
        f"difference of the final delta from the undisturbed run's: {deltas}",
        "nothing was lost" if not verdict.problems else f"LOST: {len(verdict.problems)} problems",
    ]


def markdown(verdict: Verdict) -> str:
    lines = [f"- {sentence}" for sentence in sentences(verdict)]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    rows = [*verdict.kinds, *([] if verdict.all_kinds is None else [verdict.all_kinds])]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(figures))} |" for figures in rows)])


def write(page: Path, verdict: Verdict) -> None:
    """Replace the measured part of the page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for what is measured"
    page.write_text("\n".join([before + begin, markdown(verdict), end + after]), encoding="utf-8")


def _cells(figures: KindFigures) -> tuple[str, ...]:
    numbers = (figures.lost_mean, figures.lost_max, figures.recovery_mean, figures.recovery_max)
    return (figures.kind, str(figures.faults), str(figures.restarts), *(f"{round(number, 1):g}" for number in numbers))


def _count(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"
