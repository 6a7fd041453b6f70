"""Verbs about data: `reformat`, `data encode`, and beside them `data check`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.cli.data.check import check
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.record_options import Format, Strict, Vocabulary, format_as_option
from cpmbee_job.errors import DataError


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the command line."""
    app.command()(reformat)
    data_app = typer.Typer(help="Look at data before training on them.", no_args_is_help=True, rich_markup_mode=None)
    data_app.command()(check)
    data_app.command()(encode)
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
    from cpmbee_job.data.read.reformat import input_files, reformat

    num_bytes = sum(path.stat().st_size for path in input_files(source))
    warnings: Counter[str] = Counter()
    with console.byte_progress("reformat", num_bytes) as progress, format_as_option():
        written = reformat(
            source, target, format_name, warnings, lambda count: progress.advance(progress.task_ids[0], count)
        )
    _warn_of(warnings)
    for path, num_rows in written.items():
        console.say(f"{path}: {_examples(num_rows)}")


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
    from cpmbee_job.data.encode.encoder import encode_example
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.data.read.sources import Rejection, read_source

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


def _warn_of(warnings: Counter[str]) -> None:
    for kind, count in sorted(warnings.items()):
        console.warn(f"{kind}: {count:,}")


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count:,} examples"
