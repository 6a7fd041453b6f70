import typer

from cpmbee_job.cli.shared import console
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
