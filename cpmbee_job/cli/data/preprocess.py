import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import Strict
from cpmbee_job.errors import NotFoundError, UsageError


class OnError(Enum):
    FAIL = "fail"
    SKIP = "skip"


def preprocess(
    input_folder: Annotated[str, option("--input", "DIR", "Folder of JSON lines files.")],
    output_path: Annotated[str, option("--output_path", "DIR", "Folder for the data sets.")],
    output_name: Annotated[str, option("--output_name", "NAME", "Name of the data files.")],
    vocab: Annotated[Path | None, option("--vocab", "FILE", "Also check encoding with this vocab.txt.")] = None,
    on_error: Annotated[OnError, option("--on-error", "fail|skip", "How to handle an invalid record.")] = OnError.FAIL,
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

    if vocab is not None and not vocab.is_file():
        raise NotFoundError(f"{vocab}: no such file")
    if not re.fullmatch(r"[\w.-]+", output_name):
        raise UsageError(f"--output_name: must be letters, digits, '.', '-' and '_' (got {output_name!r})")
    with prepare_bar(console.stderr) as progress:
        folder = Preparation(
            open_source(input_folder),
            PrepareSettings(max_length=None, on_error=on_error.value, strict=strict),
            None if vocab is None else Tokenizer.from_file(vocab),
            workers=num_cpus(),
            shard_prefix=output_name,
            progress=progress,
        )
        indexes = write_sets(folder, output_path)
    for url, index in indexes.items():
        typer.echo(f"{url}: {index.examples} examples{counted(index.skipped, index.warnings)}")
