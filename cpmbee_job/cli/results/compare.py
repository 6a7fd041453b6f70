import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import argument
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.compare import Comparison


def compare(
    first: RunReference,
    second: Annotated[str, argument("RUN", "The other run.")],
    where: RunOptions,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: outcome, losses, spec and data.

    Example: cpmbee-job compare ccpm/0a1b2c3d4e5f ccpm/9f8e7d6c5b4a
    """
    from cpmbee_job.launch.runs.compare import compare

    found = compare(where.open(first), where.open(second))
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_lines(side_by_side(found))


def side_by_side(found: "Comparison") -> list[Text]:
    """A line for each field, with the values of both runs in columns."""
    runs = found.first, found.second
    rows = [("", *("/".join(run.url.split("/")[-2:]) for run in runs))]
    for title, key in (("state", "state"), ("steps", "steps"), ("best step", "best_step"), ("seconds", "duration_s")):
        rows.append((title, *(_shown(getattr(run, key)) for run in runs)))
    for digest, scores in found.scores.items():
        rows.append((f"loss on {digest}", *("-" if score is None else f"{score.loss:.6f}" for score in scores)))
    rows += [(one.key, _shown(one.first), _shown(one.second)) for one in (*found.spec, *found.data)]
    return console.columns(rows)


def _shown(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return console.printable(text)
