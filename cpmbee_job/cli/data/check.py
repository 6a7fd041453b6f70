"""The verb `data check`."""

from typing import Annotated

import typer

from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.record_options import Format, Strict, Vocabulary, format_as_option
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import DataError, StoreError
from cpmbee_job.spec.training import TrainSpec


def check(
    vocab: Vocabulary,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="A file or folder of JSON lines (also .gz, .zst, s3://), or a data set that preprocess wrote.",
            show_default=False,
        ),
    ],
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", help="Evaluation data: checked too, and how much of them the input holds."),
    ] = None,
    format_name: Format = "bee",
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Tokens in a row.")] = TrainSpec().max_length,
    strict: Strict = False,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Say what is in data and what is wrong with them. Looks at lengths, packing, unknown characters, answers and
    duplicates, and shows three examples as the model sees them. Ends with 3 if a row can't be used, naming it.

    Example: cpmbee-job data check --vocab models/cpm-bee-10b/vocab.txt --input examples/train.jsonl
    """
    from cpmbee_job.cli.data.check_report import draw, summarise
    from cpmbee_job.data.check.scan import Check, report_on
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.data.read.sources import open_source

    tokenizer = Tokenizer.from_file(vocab)
    settings = storage(endpoint_url, path_style)
    out = console.stderr if as_json else console.stdout
    checks: list[Check] = []
    try:
        sources = [open_source(url, settings) for url in (source, evaluation) if url is not None]
        num_bytes = sum(one.num_bytes for one in sources)
        with console.byte_progress("check", num_bytes) as bar, format_as_option():
            for one in sources:
                checks.append(Check(one, tokenizer, format_name=format_name, max_length=max_length, strict=strict))
                checks[-1].read(lambda count: bar.advance(bar.task_ids[0], count))
        with console.byte_progress("find duplicates", num_bytes) as bar:
            bar.update(bar.task_ids[0], visible=False)  # most data have none
            report = report_on(*checks, on_bytes=lambda count: bar.update(bar.task_ids[0], advance=count, visible=True))
    except (DataError, StoreError):  # there is nothing to read, or the store fails
        out.print(f"summary: stopped after {sum(check.num_rows for check in checks):,} rows", markup=False)
        raise
    if as_json:
        console.print_json(report.model_dump())
    else:
        draw(report, out)
    out.print(summarise(report))
    errors = checks[0].errors
    for check in checks[1:]:
        errors.extend(check.errors)
    errors.refuse("mend these before training")
