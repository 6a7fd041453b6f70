"""Prepare and train on this machine."""

from typing import Annotated

import typer

from cpmbee_job.cli.shared import console, extras
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, JobOptions


def prepare(job: JobOptions, as_json: AsJson = False) -> None:
    """Tokenize, encode and pack the data of a job.

    Data that is prepared already is reused.

    Example: cpmbee-job prepare job.yaml
    """
    from cpmbee_job.data.prepare.job_data import describe, prepare_bar, prepare_job

    spec = job.load()
    with prepare_bar(console.stderr) as progress:
        document = prepare_job(spec, spec.storage.seen_by_launcher(), progress=progress)
    if as_json:
        console.print_json(document)
        return
    for split in ("train", "eval"):
        if document[split] is not None:
            typer.echo(describe(split, document[split]))


def local(
    job: JobOptions,
    processes: Annotated[
        int | None,
        option("--processes", "N", "Worker processes. Default: workers.count x max(workers.gpus, 1).", min=1),
    ] = None,
    run_id: Annotated[
        str | None, option("--run-id", "ID", "Run id. Reuse an id to resume a stopped run. Default: a new id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job on this machine: prepare, train, store the delta.

    Example: cpmbee-job local job.yaml --set train.epochs=1
    """
    from cpmbee_job.launch.local import run_local
    from cpmbee_job.run.run import Run, check_run_id, new_run_id

    spec = job.load()
    extras.require("train")  # before anything is written
    storage = spec.storage.seen_by_launcher()
    run = Run.start(spec, new_run_id() if run_id is None else check_run_id(run_id), storage)
    console.say(f"run {run.url}")
    result = run_local(run, processes or spec.workers.count * max(spec.workers.gpus, 1))
    if as_json:
        console.print_json(result)
        return
    scores = result["scores"]
    best = (
        f"best eval loss {scores['eval_loss']:.4f} at step {scores['best_step']}"
        if scores["best_step"]
        else "no evaluation"
    )
    console.say(f"succeeded after {result['steps']} steps ({result['reason']}), {best}")
    typer.echo(run.url)
