"""Download, compare and promote what runs have stored."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.ci_report import append, require_writable
from cpmbee_job.cli.shared.commands import argument, flag, option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference, SummaryFile
from cpmbee_job.errors import StoreError, UsageError


def fetch(
    run: RunReference,
    where: RunOptions,
    to: Annotated[Path | None, option("--to", "DIR", "The new folder. Default: ./NAME-RUN_ID.")] = None,
    what: Annotated[
        str | None, option("--what", "KINDS", "Of delta,metrics,result,spec,logs (the default),status,tensorboard.")
    ] = None,
    last: Annotated[bool, flag("--last", "Download the last delta instead of the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download the delta, metrics and logs of a run.

    The hashes of all files are verified.

    Example: cpmbee-job fetch ccpm/0a1b2c3d4e5f --to ccpm
    """
    from cpmbee_job.launch.lifecycle.fetch import fetch
    from cpmbee_job.store.urls import open_store

    found, _ = where.find(run)
    if found.store_problem is not None:
        raise StoreError(found.store_problem)
    target = to or Path(f"{found.name}-{found.run_id}")
    kinds = None if what is None else [kind.strip() for kind in what.split(",") if kind.strip()]
    if kinds == []:
        raise UsageError("--what: must name at least one kind")
    names = fetch(open_store(found.url, found.storage), target, kinds, last=last, bar=console.byte_bar)
    console.say(f"{len(names)} files of {found.url}")
    document = {"run": found.reference, "url": found.url, "folder": str(target), "files": list(names)}
    console.print_result(document, [str(target)], as_json=as_json)


def promote(
    run: RunReference,
    to: Annotated[str, option("--to", "URL", "The folder of the delta in production.")],
    where: RunOptions,
    min_gain: Annotated[float, option("--min-gain", "LOSS", "Minimum improvement of the loss.", min=0.0)] = 0.0,
    eval_digest: Annotated[
        str | None, option("--eval-digest", "DIGEST", "Examples to compare on. Default: those of data.eval.")
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
    require_writable(summary)
    target = open_store(to, found.storage)
    done = promote(found, target, min_gain=min_gain, eval_digest=eval_digest, bar=console.byte_bar)
    outcome = "promoted to" if done.promoted else "not promoted to"
    append(summary, f"### {outcome} `{done.to}`\n\n{done.verdict.why}\n")
    if as_json:
        console.print_json(done.record())
    done.require_promoted()
    console.say(f"{done.to} now contains the delta of {done.run}: {done.verdict.why}")
    if not as_json:
        typer.echo(done.delta)


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
    runs = found.first, found.second
    rows = [("", *("/".join(run.url.split("/")[-2:]) for run in runs))]
    for title, key in (("state", "state"), ("steps", "steps"), ("best step", "best_step"), ("seconds", "duration_s")):
        rows.append((title, *(_shown(getattr(run, key)) for run in runs)))
    for digest, scores in found.scores.items():
        rows.append((f"loss on {digest}", *("-" if score is None else f"{score.loss:.6f}" for score in scores)))
    rows += [(one.key, _shown(one.first), _shown(one.second)) for one in (*found.spec, *found.data)]
    console.print_result(asdict(found), console.columns(rows), as_json=as_json)


def _shown(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return console.printable(text)
