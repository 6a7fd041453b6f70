"""Verbs about data: `reformat`, `data check`, `data encode`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cpmbee_job.cli import console
from cpmbee_job.errors import DataError, SpecError, UsageError

data_app = typer.Typer(help="Look at data before training on them.", no_args_is_help=True, rich_markup_mode=None)

Vocabulary = Annotated[Path, typer.Option("--vocab", help="The model's vocab.txt.", show_default=False)]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="How a row becomes an example: bee (it is one already), ccpm, or module:function of your own.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse what the original code refuses, such as a bare '<' or a number for a text."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the command line."""
    app.command()(reformat)
    app.add_typer(data_app, name="data")


def reformat(
    source: Annotated[
        Path, typer.Option("--input", help="A file of JSON lines, or a folder of them.", show_default=False)
    ],
    target: Annotated[
        Path, typer.Option("--output", help="Folder for the results, which keep their file names.", show_default=False)
    ],
    format_name: Format = "ccpm",
) -> None:
    """Turn raw rows into examples with <ans>, as training needs.

    Example: cpmbee-job reformat --input raw --output examples --format ccpm
    """
    from cpmbee_job.data.reformat import input_files, reformat

    num_bytes = sum(path.stat().st_size for path in input_files(source))
    warnings: Counter[str] = Counter()
    with console.byte_progress("reformat", num_bytes) as progress, _format_as_option():
        written = reformat(
            source, target, format_name, warnings, lambda count: progress.advance(progress.task_ids[0], count)
        )
    _warn_of(warnings)
    for path, num_rows in written.items():
        console.say(f"{path}: {_examples(num_rows)}")


@data_app.command()
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
    format_name: Format = "bee",
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Count examples of more tokens than this.")
    ] = None,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")] = False,
) -> None:
    """Count rows, lengths and doubtful texts. Ends with 3 if a row can't be used, naming it.

    Example: cpmbee-job data check --vocab models/cpm-bee-10b/vocab.txt --input examples/train.jsonl
    """
    from cpmbee_job.data.check import Check
    from cpmbee_job.data.sources import read_source
    from cpmbee_job.data.tokenizer import Tokenizer

    findings = Check(Tokenizer.from_file(vocab), max_length=max_length, strict=strict)
    with console.item_progress("check", None, "rows") as progress, _format_as_option():
        try:
            for record in read_source(source, None, format_name, findings.warnings, strict=strict):
                findings.add(record)
                progress.advance(progress.task_ids[0])
        except DataError as error:  # what is behind it can't be read
            findings.errors.add(error)
    report = findings.report()
    if as_json:
        console.print_json(report)
    else:
        for line in _report_lines(report):
            console.stdout.print(line, markup=False)
    findings.errors.refuse("mend these before training")


@data_app.command()
def encode(
    vocab: Vocabulary,
    source: Annotated[
        str,
        typer.Option("--input", help="A file of examples, one JSON object a line.", show_default=False),
    ],
    strict: Strict = False,
) -> None:
    """Print what the model would see of each example. One line of JSON each.

    Example: cpmbee-job data encode --vocab models/cpm-bee-10b/vocab.txt --input examples/train.jsonl
    """
    from cpmbee_job.data.encode import encode_example
    from cpmbee_job.data.sources import Rejection, read_source
    from cpmbee_job.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(vocab)
    warnings: Counter[str] = Counter()
    for record in read_source(source, None, "bee", warnings, strict=strict):
        try:
            if isinstance(record.content, Rejection):
                raise record.content.error
            encoded = encode_example(tokenizer, record.content, strict=strict)
        except DataError as error:
            raise DataError(f"{record.location}: {error.message}", hint=error.hint) from error
        line = {
            "data": record.content,
            "input_ids": encoded.input_ids.tolist(),
            "input_id_subs": encoded.input_id_subs.tolist(),
            "context": encoded.context.tolist(),
            "segment_ids": encoded.segment_ids.tolist(),
            "segment_rel": encoded.segment_rel.tolist(),
            "num_segments": encoded.num_segments,
            "ext_table": encoded.ext_table,
        }
        sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    if tokenizer.literals:
        warnings["'<' taken as text"] = tokenizer.literals
    _warn_of(warnings)


@contextmanager
def _format_as_option() -> Iterator[None]:
    """A format that is none is a mistake on the command line here."""
    try:
        yield
    except SpecError as error:
        raise UsageError(f"--format: {error.message}", hint=error.hint) from error


def _warn_of(warnings: Counter[str]) -> None:
    for kind, count in sorted(warnings.items()):
        console.warn(f"{kind}: {count:,}")


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count:,} examples"


def _report_lines(report: dict[str, Any]) -> Iterator[str]:
    bad = f", {report['bad_rows']:,} that can't be used" if report["bad_rows"] else ""
    yield f"rows           {report['rows']:,}: {_examples(report['examples'])}{bad}"
    for name, title in (("tokens", "tokens"), ("target_tokens", "target tokens")):
        if report[name] is not None:
            numbers = dict(report[name])
            yield f"{title:15}{numbers.pop('total'):,}; of an example " + ", ".join(
                f"{key} {value:,}" for key, value in numbers.items()
            )
    if report["too_long"] is not None:
        yield f"too long       {report['too_long']:,} of more than {report['max_length']:,} tokens"
    for kind, count in report["warnings"].items():
        yield f"warning        {kind}: {count:,}"
