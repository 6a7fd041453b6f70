"""Convert and validate raw records."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import Format, Strict, format_as_option
from cpmbee_job.errors import UsageError


def reformat(
    source: Annotated[Path, option("--input", "PATH", "A JSON lines file, or a folder of them.")],
    target: Annotated[Path, option("--output", "DIR", "Folder for the results; file names are kept.")],
    format_name: Format = "ccpm",
) -> None:
    """Convert raw records to examples with <ans>.

    Example: cpmbee-job reformat --input raw --output examples --format ccpm
    """
    from cpmbee_job.data.read.reformat import input_files, reformat

    num_bytes = sum(path.stat().st_size for path in input_files(source))
    warnings: Counter[str] = Counter()
    with console.progress("reformat", num_bytes) as advance, format_as_option():
        written = reformat(source, target, format_name, warnings, advance)
    console.warn_of_counts(warnings)
    for path, count in written.items():
        console.say(f"{path}: {'1 example' if count == 1 else f'{count:,} examples'}")


def preprocess(
    input_folder: Annotated[str, option("--input", "DIR", "Folder of JSON lines files.")],
    output_path: Annotated[str, option("--output_path", "DIR", "Folder for the data sets.")],
    output_name: Annotated[str, option("--output_name", "NAME", "Name of the data files.")],
    vocab: Annotated[Path | None, option("--vocab", "FILE", "Also check encoding with this vocab.txt.")] = None,
    on_error: Annotated[
        Literal["fail", "skip"], option("--on-error", "fail|skip", "How to handle an invalid record.")
    ] = "fail",
    strict: Strict = False,
) -> None:
    """Validate records and write them as data sets.

    Replaces the original preprocess_dataset.py. Each input file becomes a data set: train.jsonl becomes the folder
    OUTPUT_PATH/train, which the original fine-tuning script takes as --dataset.

    Example: cpmbee-job preprocess --input raw --output_path bin_data --output_name ccpm
    """
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.data.prepare.job_data import counted, prepare_bar
    from cpmbee_job.data.prepare.prepare import Preparation
    from cpmbee_job.data.prepare.preprocess import preprocess as write_sets
    from cpmbee_job.data.prepare.shard_maker import PrepareSettings
    from cpmbee_job.data.read.sources import open_source
    from cpmbee_job.process.pod import num_cpus

    if not re.fullmatch(r"[\w.-]+", output_name):
        raise UsageError(f"--output_name: must be letters, digits, '.', '-' and '_' (got {output_name!r})")
    with prepare_bar(console.stderr) as progress:
        folder = Preparation(
            open_source(input_folder),
            PrepareSettings(max_length=None, on_error=on_error, strict=strict),
            None if vocab is None else Tokenizer.from_file(vocab),
            workers=num_cpus(),
            shard_prefix=output_name,
            progress=progress,
        )
        indexes = write_sets(folder, output_path)
    for url, index in indexes.items():
        typer.echo(f"{url}: {index.examples} examples{counted(index.skipped, index.warnings)}")
