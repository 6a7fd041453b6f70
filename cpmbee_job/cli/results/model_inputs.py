"""Load what `predict` and `evaluate` work on: a model with its delta, its tokenizer and the examples."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.errors import DataError, ModelError, SpecError, UsageError
from cpmbee_job.process import contract
from cpmbee_job.process.pod import num_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpmbee_job.data.encode.examples import Example
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.lora import Delta as LoraDelta
    from cpmbee_job.model.net.cpmbee import CpmBee
    from cpmbee_job.model.weights.model_folder import ModelFiles
    from cpmbee_job.spec import StorageSpec

ModelOption = Annotated[str, option("--model", "URL", "Folder with vocab.txt, config.json, weights; local or s3://.")]
DELTA_HELP = "Delta folder, .pt file, or a run's folder (then its best delta); local or s3://."


@dataclass(frozen=True)
class ModelOptions:
    """A model, and optionally a delta of it."""

    model: ModelOption
    delta: Annotated[str | None, option("--delta", "URL", DELTA_HELP)] = None


def load_with_delta(options: ModelOptions, files: "ModelFiles", storage: "StorageSpec") -> "CpmBee":
    """Load the model and apply its delta: in half precision on a GPU if there is one, else in fp32 on the CPU."""
    import torch

    from cpmbee_job.model.config import ModelConfig
    from cpmbee_job.model.locate import fetch_delta
    from cpmbee_job.model.lora import apply_delta
    from cpmbee_job.model.weights.model_folder import load_model

    if contract.CPUS_ENV in os.environ:  # in a container, torch counts the CPUs of the node
        torch.set_num_threads(num_cpus())
    delta = None if options.delta is None else fetch_delta(options.delta, storage)
    on_gpu = torch.cuda.is_available()
    half = on_gpu and ModelConfig.from_file(files.config).half
    dtype, device = torch.float16 if half else torch.float32, torch.device("cuda" if on_gpu else "cpu")
    with console.progress("read weights", sum(file.size for file in files.weights)) as advance:
        model = load_model(files, dtype, device, progress=advance)
    if delta is not None and options.delta is not None:
        warn_of_other_base(delta, model.base_digest, options.delta, options.model)
        apply_delta(model, delta)
    console.say(
        f"{options.model}: {sum(p.numel() for p in model.parameters()):,} weights, config in the "
        f"{model.config.dialect} dialect, {str(dtype).removeprefix('torch.')} on {device.type}"
    )
    return model


def warn_of_other_base(delta: "LoraDelta", base_digest: str, delta_url: str, model_url: str) -> None:
    """Warn if the delta was trained on another base model."""
    if delta.base_digest not in (None, base_digest):
        console.warn(f"{delta_url} was trained on other weights than those of {model_url}")


def open_model(url: str, storage: "StorageSpec") -> "tuple[ModelFiles, Tokenizer]":
    """Find a model's files and read its vocabulary. Raises `ModelError` if the vocabulary is another model's."""
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.config import ModelConfig
    from cpmbee_job.model.locate import fetch_model
    from cpmbee_job.process.pod import require_contract

    require_contract()
    files = fetch_model(url, storage)
    tokenizer = Tokenizer.from_file(files.vocab)
    vocab_size = ModelConfig.from_file(files.config).vocab_size
    if tokenizer.vocab_size != vocab_size:
        raise ModelError(
            f"{files.vocab}: has {tokenizer.vocab_size} entries, but vocab_size in {files.config} is {vocab_size}",
            hint="use the vocab.txt of this model",
        )
    return files, tokenizer


def load_examples(url: str, storage: "StorageSpec", format_name: str) -> "Sequence[tuple[str, Example]]":
    """Read all examples, each with its location. Raises `DataError` for the first invalid record and for no records."""
    from cpmbee_job.data.read.reader import Rejection, read_source

    warnings: Counter[str] = Counter()
    examples = []
    try:
        for record in read_source(url, storage, format_name, warnings):
            if isinstance(record.content, Rejection):
                error = record.content.error
                raise DataError(f"{record.location}: {error.message}", hint=error.hint) from error
            examples.append((str(record.location), record.content))
    except SpecError as error:
        raise UsageError(error.message, hint=error.hint) from error
    console.warn_of_counts(warnings)
    if not examples:
        raise DataError(f"{url}: contains no records")
    return examples
