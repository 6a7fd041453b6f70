from typing import Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.ci_report import appended
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference, SummaryFile


def promote(
    run: RunReference,
    to: Annotated[str, option("--to", "URL", "The folder of the delta in production.")],
    where: RunOptions,
    min_gain: Annotated[float, option("--min-gain", "LOSS", "Minimum improvement of the loss.", min=0.0)] = 0.0,
    eval_digest: Annotated[
        str | None,
        option("--eval-digest", "DIGEST", "Examples to compare on (see `evaluate`). Default: the run's data.eval."),
    ] = None,
    summary: SummaryFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy a run's best delta to production if it is better.

    Better means a lower loss on the same examples. Otherwise nothing changes, and the exit code is 5. Commands that
    take --delta accept the folder as they accept a run's. Promoting the same delta again changes nothing.

    Example: cpmbee-job promote ccpm/0a1b2c3d4e5f --to s3://bucket/production/
    """
    from cpmbee_job.launch.lifecycle.promote import promote
    from cpmbee_job.store.urls import open_store

    found = where.open(run)
    with appended(summary) as write:
        target = open_store(to, found.storage)
        done = promote(found, target, min_gain=min_gain, eval_digest=eval_digest, bar=console.byte_bar)
        headline = f"{'promoted to' if done.promoted else 'not promoted to'} `{done.to}`"
        write(f"### {headline}\n\n{done.verdict.why}\n")
        if as_json:
            console.print_json(done.record())
        done.require_promoted()
    console.say(f"{done.to} now contains the delta of {done.run}: {done.verdict.why}")
    if not as_json:
        typer.echo(done.delta)
