"""Verbs that make models out of models: `model merge`, `model convert`, `model init`."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.outputs import new_folder
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from cpmbee_job.model.lora import Delta as LoraDelta
    from cpmbee_job.model.weights.model_folder import ModelFiles
    from cpmbee_job.model.weights.stored import Progress

model_app = typer.Typer(help="Make models out of models.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[
    str,
    typer.Option("--model", help="Model folder: vocab.txt, config.json and weights; also s3://.", show_default=False),
]
NeededDelta = Annotated[
    str,
    typer.Option("--delta", help="Delta folder, .pt file, or a run's folder (then its best).", show_default=False),
]
Out = Annotated[str, typer.Option("--out", help="Folder for the new model; also s3://.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the command line."""
    app.add_typer(model_app, name="model")


@model_app.command()
def merge(
    model: Model,
    delta: NeededDelta,
    out: Out,
    round_weights: Annotated[
        bool,
        typer.Option(
            "--round",
            help="Store changed weights in the base's own type. Smaller, but answers may differ in the third digit.",
        ),
    ] = False,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Fold a delta into its base. The new model answers as the two did together.

    Example: cpmbee-job model merge --model models/cpm-bee-10b --delta runs/ccpm/r1 --out models/ccpm
    """
    from cpmbee_job.model.locate import fetch_delta, fetch_model
    from cpmbee_job.model.lora import merged_layout, merged_weights
    from cpmbee_job.model.weights.stored import StoredWeights

    settings = storage(endpoint_url, path_style)
    files = fetch_model(model, settings)
    change = fetch_delta(delta, settings)
    base = StoredWeights(files.weights)
    layout = merged_layout(base.layout, change, same_dtype=round_weights)
    with new_folder(out, settings, last="config.json") as folder, reading(base.nbytes) as progress:
        _write_model(folder, layout, merged_weights(base.stream(progress), change, layout), files)
    warn_of_another_base(change, base.streamed_digest, delta, model)
    console.say(f"{out}: {change.source} (r {change.r}, alpha {change.alpha:g}) folded into {model}")


@model_app.command()
def convert(
    model: Model,
    out: Out,
    target: Annotated[
        Literal["safetensors", "bin"], typer.Option("--to", help="Format of the weights; bin is the original's.")
    ] = "safetensors",
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Write a model's weights in the other file format. Their names become the original's.

    Example: cpmbee-job model convert --model models/ccpm --out models/ccpm-bin --to bin
    """
    from cpmbee_job.model.locate import fetch_model
    from cpmbee_job.model.weights.model_folder import check_model
    from cpmbee_job.model.weights.stored import StoredWeights

    settings = storage(endpoint_url, path_style)
    files = fetch_model(model, settings)
    stored = StoredWeights(files.weights)
    check_model(files, stored)
    with new_folder(out, settings, last="config.json") as folder, reading(stored.nbytes) as progress:
        _write_model(folder, stored.layout, stored.stream(progress), files, as_bin=target == "bin")
    console.say(f"{out}: {len(stored.tensors)} tensors of {model}")


@model_app.command()
def init(
    config: Annotated[
        Path, typer.Option("--config", help="config.json; vocab_size may be left out.", show_default=False)
    ],
    vocab: Annotated[Path, typer.Option("--vocab", help="vocab.txt of the model.", show_default=False)],
    out: Out,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the weights.")] = 0,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Make a model folder with random weights, to try things with.

    Example: cpmbee-job model init --config config.json --vocab vocab.txt --out models/random
    """
    import torch

    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.config import ModelConfig, read_config
    from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
    from cpmbee_job.model.weights.saving import save_weights
    from cpmbee_job.run.model_files import CONFIG, VOCABULARY

    settings = storage(endpoint_url, path_style)
    vocab_size = Tokenizer.from_file(vocab).vocab_size
    shape = ModelConfig.from_dict({"vocab_size": vocab_size, **read_config(config)}, source=str(config))
    if shape.vocab_size != vocab_size:
        raise ModelError(f"{config}: vocab_size is {shape.vocab_size}, but {vocab} has {vocab_size} entries")
    model = CpmBee(shape)
    init_weights(model, seed)
    model.to(torch.float16 if shape.half else torch.float32)
    with new_folder(out, settings, last=CONFIG) as folder:
        save_weights(model.state_dict(), folder)
        shutil.copy(vocab, folder / VOCABULARY)
        (folder / CONFIG).write_text(json.dumps(shape.to_dict(), indent=2) + "\n", encoding="utf-8")
    console.say(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights")


@contextmanager
def reading(num_bytes: int) -> "Iterator[Progress]":
    """A bar for weights that are read; what to call with the number of bytes that have been."""
    with console.byte_progress("read weights", num_bytes) as progress:
        yield lambda count: progress.advance(progress.task_ids[0], count)


def warn_of_another_base(delta: "LoraDelta", base_digest: str, delta_url: str, model_url: str) -> None:
    if delta.base_digest not in (None, base_digest):
        console.warn(f"{delta_url} was trained on other weights than those of {model_url}")


def _write_model(
    folder: Path,
    layout: "dict[str, Tensor]",
    tensors: "Iterator[tuple[str, Tensor]]",
    files: "ModelFiles",
    *,
    as_bin: bool = False,
) -> None:
    from cpmbee_job.model.weights.saving import save_pickled, save_weights
    from cpmbee_job.run.model_files import CONFIG, VOCABULARY

    if as_bin:
        save_pickled(dict(tensors), folder / "pytorch_model.bin")
    else:
        save_weights(layout, folder, tensors)
    shutil.copy(files.config, folder / CONFIG)
    if files.vocab.is_file():
        shutil.copy(files.vocab, folder / VOCABULARY)
