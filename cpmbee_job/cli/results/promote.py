"""Verbs that judge what runs have come to: `promote`, `compare`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, Namespace, Output, Reference, open_run
from cpmbee_job.cli.shared.report import SummaryFile, appended
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.compare import Comparison, Difference


def register(app: typer.Typer) -> None:
    app.command(name="promote")(promote_run)
    app.command(name="compare")(compare_runs)


def promote_run(
    run: Reference,
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="The folder that stands for the delta in use.", show_default=False),
    ],
    min_gain: Annotated[
        float, typer.Option("--min-gain", min=0.0, help="By how much the loss must be lower, at least.")
    ] = 0.0,
    eval_digest: Annotated[
        str | None,
        typer.Option(
            "--eval-digest",
            help="Decide by the scores on these examples, as `evaluate` names them. Default: the run's data.eval.",
        ),
    ] = None,
    summary: SummaryFile = None,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Copy a run's best delta to where the one in use lies, if it is better.

    Better is a lower loss on the same examples. Else it ends with 5 and both losses, and nothing changes. The folder
    may be named as a run's is, by `--delta` and others. The same again changes nothing.

    Example: cpmbee-job promote ccpm/0a1b2c3d4e5f --to s3://bucket/production/
    """
    from cpmbee_job.launch.lifecycle.promote import promote
    from cpmbee_job.store.urls import open_store

    found = open_run(run, context, namespace, output, storage(endpoint_url, path_style))
    with appended(summary) as write:
        target = open_store(to, found.storage)
        done = promote(found, target, min_gain=min_gain, eval_digest=eval_digest, bar=console.byte_bar)
        headline = f"{'promoted to' if done.promoted else 'not promoted to'} `{done.to}`"
        write(f"### {headline}\n\n{done.verdict.why}\n")
        if as_json:
            console.print_json(done.record())
        done.require_promoted()
    console.say(f"{done.to} stands for {done.run}: {done.verdict.why}")
    if not as_json:
        typer.echo(done.delta)


def compare_runs(
    first: Annotated[
        str, typer.Argument(metavar="RUN", help="<name>/<run id>, or the URL of the run's folder.", show_default=False)
    ],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The other one.", show_default=False)],
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Show two runs side by side: how they ended, their losses, and in what their specs and data differ.

    Example: cpmbee-job compare ccpm/0a1b2c3d4e5f ccpm/9f8e7d6c5b4a
    """
    from cpmbee_job.launch.runs.compare import compare

    settings = storage(endpoint_url, path_style)
    runs = [open_run(run, context, namespace, output, settings) for run in (first, second)]
    found = compare(runs[0], runs[1])
    if as_json:
        console.print_json(found.record())
        return
    for line in side_by_side(found):
        console.stdout.print(line)


def side_by_side(found: "Comparison") -> list[Text]:
    """A line for each thing that can be compared, in columns."""
    one, other = found.first, found.second
    rows = [("", *("/".join(run.url.split("/")[-2:]) for run in (one, other)))]
    for title, key in (("state", "state"), ("steps", "steps"), ("best step", "best_step"), ("seconds", "duration_s")):
        rows.append((title, _shown(getattr(one, key)), _shown(getattr(other, key))))
    for digest, scores in found.scores.items():
        losses = ("-" if score is None else f"{score.loss:.6f}" for score in scores)
        rows.append((f"loss on {digest}", *losses))
    rows += [_row(difference) for difference in (*found.spec, *found.data)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [Text(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip()) for row in rows]


def _row(difference: "Difference") -> tuple[str, str, str]:
    return difference.key, _shown(difference.first), _shown(difference.second)


def _shown(value: object) -> str:
    words = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return console.printable(words)
