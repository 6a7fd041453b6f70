from typing import Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, Format, StoreOptions, Strict, Vocabulary, format_as_option
from cpmbee_job.errors import DataError, StoreError


def check(
    vocab: Vocabulary,
    source: Annotated[str, option("--input", "URL", "JSON lines (also .gz, .zst), a folder of them, or a data set.")],
    store: StoreOptions,
    evaluation: Annotated[str | None, option("--eval", "URL", "Evaluation data, also checked for leakage.")] = None,
    format_name: Format = "bee",
    max_length: Annotated[int, option("--max-length", "TOKENS", "Tokens in a packed row.", min=1)] = 2048,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Report statistics and problems of training data.

    Checks lengths, packing, unknown characters, answers and duplicates, and shows three examples as the model sees
    them. Names each invalid record; the exit code is 3 if there is any. Schema of --json:
    docs/reference/check.schema.json.

    Example: cpmbee-job data check --vocab models/cpm-bee-10b/vocab.txt --input examples/train.jsonl
    """
    from cpmbee_job.cli.data.check_report import draw, summarize
    from cpmbee_job.data.check.scan import Check, report_on
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.data.read.sources import open_source

    tokenizer = Tokenizer.from_file(vocab)
    storage = store.storage()
    out = console.stderr if as_json else console.stdout
    checks: list[Check] = []
    try:
        sources = [open_source(url, storage) for url in (source, evaluation) if url is not None]
        num_bytes = sum(one.num_bytes for one in sources)
        with console.progress("check", num_bytes) as advance, format_as_option():
            for one in sources:
                checks.append(Check(one, tokenizer, format_name=format_name, max_length=max_length, strict=strict))
                checks[-1].read(advance)
        report = report_on(*checks)
    except (DataError, StoreError):  # nothing to read, or the object store fails
        out.print(f"summary: stopped after {sum(check.num_records for check in checks):,} records", markup=False)
        raise
    if as_json:
        console.print_json(report.model_dump())
    else:
        draw(report, out)
    out.print(summarize(report))
    errors = checks[0].errors
    for check in checks[1:]:
        errors.extend(check.errors)
    errors.refuse("fix these before training")
