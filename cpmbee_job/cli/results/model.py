import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cpmbee_job.cli.results.model_inputs import DELTA_HELP, ModelOption, warn_of_other_base
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import StoreOptions, Vocabulary
from cpmbee_job.errors import ModelError

if TYPE_CHECKING:
    from cpmbee_job.model.weights.model_folder import ModelFiles
    from cpmbee_job.spec import StorageSpec

Out = Annotated[str, option("--out", "URL", "Folder for the new model; local or s3://.")]


def merge(
    model: ModelOption,
    delta: Annotated[str, option("--delta", "URL", DELTA_HELP)],
    out: Out,
    store: StoreOptions,
    round_weights: Annotated[bool, flag("--round", "Round to the base's dtype: smaller, less accurate.")] = False,
) -> None:
    """Merge a delta into its base model.

    The new model gives the same results as base and delta together.

    Example: cpmbee-job model merge --model models/cpm-bee-10b --delta runs/ccpm/r1 --out models/ccpm
    """
    from cpmbee_job.model.locate import fetch_delta, fetch_model
    from cpmbee_job.model.lora import merged_layout, merged_weights
    from cpmbee_job.model.weights.saving import save_weights
    from cpmbee_job.model.weights.stored import StoredWeights

    storage = store.storage()
    files = fetch_model(model, storage)
    change = fetch_delta(delta, storage)
    base = StoredWeights(files.weights)
    layout = merged_layout(base.layout, change, same_dtype=round_weights)
    with _new_model(out, storage, files) as folder, console.progress("read weights", base.nbytes) as advance:
        save_weights(layout, folder, merged_weights(base.stream(advance), change, layout))
    warn_of_other_base(change, base.streamed_digest, delta, model)
    console.say(f"{out}: merged {change.source} (r {change.r}, alpha {change.alpha:g}) into {model}")


def convert(
    model: ModelOption,
    out: Out,
    store: StoreOptions,
    target: Annotated[
        Literal["safetensors", "bin"], option("--to", "safetensors|bin", "File format; bin is the original's.")
    ] = "safetensors",
) -> None:
    """Convert a model's weights to another file format.

    Weights are renamed to the original's names.

    Example: cpmbee-job model convert --model models/ccpm --out models/ccpm-bin --to bin
    """
    from cpmbee_job.model.locate import fetch_model
    from cpmbee_job.model.weights.model_folder import check_model
    from cpmbee_job.model.weights.saving import save_pickled, save_weights
    from cpmbee_job.model.weights.stored import StoredWeights

    storage = store.storage()
    files = fetch_model(model, storage)
    stored = StoredWeights(files.weights)
    check_model(files, stored)
    with _new_model(out, storage, files) as folder, console.progress("read weights", stored.nbytes) as advance:
        if target == "bin":
            save_pickled(dict(stored.stream(advance)), folder / "pytorch_model.bin")
        else:
            save_weights(stored.layout, folder, stored.stream(advance))
    console.say(f"{out}: {len(stored.tensors)} tensors of {model}")


def init(
    config: Annotated[Path, option("--config", "FILE", "config.json; vocab_size is optional.")],
    vocab: Vocabulary,
    out: Out,
    store: StoreOptions,
    seed: Annotated[int, option("--seed", "N", "Seed of the random weights.", min=0)] = 0,
) -> None:
    """Create a model with random weights, for tests.

    Example: cpmbee-job model init --config config.json --vocab vocab.txt --out models/random
    """
    import torch

    from cpmbee_job.cli.shared.outputs import new_folder
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.config import ModelConfig, read_config
    from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
    from cpmbee_job.model.weights.saving import save_weights
    from cpmbee_job.run.model_files import CONFIG, VOCABULARY

    storage = store.storage()
    vocab_size = Tokenizer.from_file(vocab).vocab_size
    shape = ModelConfig.from_dict({"vocab_size": vocab_size, **read_config(config)}, source=str(config))
    if shape.vocab_size != vocab_size:
        raise ModelError(f"{config}: vocab_size is {shape.vocab_size}, but {vocab} has {vocab_size} entries")
    model = CpmBee(shape)
    init_weights(model, seed)
    model.to(torch.float16 if shape.half else torch.float32)
    with new_folder(out, storage, last=CONFIG) as folder:
        save_weights(model.state_dict(), folder)
        shutil.copy(vocab, folder / VOCABULARY)
        (folder / CONFIG).write_text(json.dumps(shape.to_dict(), indent=2) + "\n", encoding="utf-8")
    console.say(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights")


@contextmanager
def _new_model(out: str, storage: "StorageSpec", files: "ModelFiles") -> "Iterator[Path]":
    """Yield a new folder for the weights of a model, and add the other files of `files`."""
    from cpmbee_job.cli.shared.outputs import new_folder
    from cpmbee_job.run.model_files import CONFIG, VOCABULARY

    with new_folder(out, storage, last=CONFIG) as folder:
        yield folder
        shutil.copy(files.config, folder / CONFIG)
        if files.vocab.is_file():
            shutil.copy(files.vocab, folder / VOCABULARY)
