"""Replace the original's fine-tuning script, with the same flags: `torchrun ... -m cpmbee_job.finetune $OPTS`.

The flags become a job spec. The run's folder is `<save>/<save-name>/<run>/`; the best weights are
`<save>/<save-name>-delta-best.pt`, as in the original.
"""

import argparse
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

from cpmbee_job.data.__main__ import prepare_run
from cpmbee_job.errors import CpmbeeError, NotFoundError, SpecError, UsageError
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.model.weights.weight_file import LocalFile
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run, exit_code, new_run_id
from cpmbee_job.spec import DataSpec, JobSpec, StorageSpec, TrainSpec
from cpmbee_job.store.urls import open_store
from cpmbee_job.train.attempt import Exports
from cpmbee_job.train.output.terminal import console, log_to_console
from cpmbee_job.train.worker import exit_with_torchrun, init_world, work

log = logging.getLogger("cpmbee_job.finetune")  # the name of this module even if it runs as __main__

TRAIN_FLAGS: dict[str, Any] = {
    "use_delta": False,
    "max_length": 512,
    "drop_last": False,
    "task_name": "task",
    "batch_size": 32,
    "max_steps": None,
    "seed": 1234,
    "eval_interval": 500,
    "early_stop_patience": 5,
    "inspect_iters": 1000,
    "lr": 1e-4,
    "lr_decay_style": "noam",
    "train_iters": 1_000_000,
    "lr_decay_iters": None,
    "warmup_iters": 100,
    "start_step": 0,
    "weight_decay": 0.01,
    "clip_grad": 1.0,
    "loss_scale": 1_048_576.0,
    "loss_scale_factor": 2.0,
    "loss_scale_steps": 512.0,
    "save_name": "cpm_bee_finetune",
    "checkpoint_interval": 1000,
}
"""Flags that set the field of `train` with the same name, and the original's defaults."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cpmbee_job.finetune",
        description="Fine-tune CPM-Bee with the flags of the original script.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--model-config", type=Path, required=True, help="Model configuration (JSON).")
    inputs.add_argument("--load", type=Path, required=True, help="Weights: .bin, .pt or .safetensors file.")
    inputs.add_argument("--vocab", type=Path, help="Vocabulary. Default: vocab.txt beside the weights.")
    data = "output of preprocess or of the original, or JSON lines."
    inputs.add_argument("--dataset", required=True, help=f"Training data: {data}")
    inputs.add_argument("--eval_dataset", help=f"Evaluation data: {data}")

    train = parser.add_argument_group("training")
    train.add_argument("--epoch", type=int, default=1, help="Passes over the training data.")
    for name, default in TRAIN_FLAGS.items():
        field = TrainSpec.model_fields[name]
        options: dict[str, Any] = {"default": default, "help": (field.description or "").replace("%", "%%")}
        if default is False:
            options["action"] = "store_true"
        else:
            options["type"] = int if default is None else type(default)
        if name == "batch_size":
            options["help"] = "Packed rows in one step of one process."
        if name == "lr_decay_style":
            options["choices"] = get_args(field.annotation)
        aliases = ["--save-iters"] if name == "checkpoint_interval" else []
        train.add_argument(f"--{name.replace('_', '-')}", *aliases, **options)

    results = parser.add_argument_group("results")
    results.add_argument("--save", type=Path, default=Path("results"), help="Folder for results.")
    results.add_argument("--resume", action="store_true", help="Resume the newest run of this name in --save.")
    results.add_argument("--tensorboard", type=Path, help="Folder for TensorBoard events.")
    results.add_argument("--log-dir", type=Path, help="Folder for a copy of metrics.jsonl.")
    return parser.parse_args(arguments)


def job_spec(options: argparse.Namespace, world_size: int) -> JobSpec:
    """Return the job that the flags describe. Raises `SpecError`."""
    name = re.sub(r"[^a-z0-9]+", "-", options.save_name.lower()).strip("-")[:40].strip("-") or "finetune"
    steps = int(options.loss_scale_steps)  # the original accepts 512.0
    try:
        return JobSpec(
            name=name,
            model=str(options.load.absolute().parent),
            data=DataSpec(
                train=_absolute(options.dataset), eval=options.eval_dataset and _absolute(options.eval_dataset)
            ),
            output=str(options.save.absolute()),
            train=TrainSpec(
                epochs=options.epoch,
                global_batch_size=options.batch_size * world_size,
                **{name: getattr(options, name) for name in TRAIN_FLAGS} | {"loss_scale_steps": steps},
            ),
        )
    except ValueError as error:
        raise SpecError(str(error)) from error


def begin(options: argparse.Namespace, model: ModelFiles, world_size: int) -> str:
    """On rank 0: start a run, or find the one to resume, and prepare its data. Returns the run's URL."""
    spec = job_spec(options, world_size)
    runs = {found.key.split("/")[0] for found in open_store(f"{spec.output}/{spec.name}").list() if "/" in found.key}
    run_id = new_run_id()
    if options.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        if not runs:
            raise NotFoundError(f"{spec.output}/{spec.name}: no run to resume", hint="omit --resume to start one")
        run_id = max(runs)
        # Keep the step size of the run if the number of processes differs.
        begun = Run.open(keys.run_url(spec.output, spec.name, run_id)).spec
        train = spec.train.model_copy(update={"global_batch_size": begun.train.global_batch_size})
        spec = spec.model_copy(update={"train": train})
    run = Run.start(spec, run_id)
    result = run.result()
    if result is None or result["state"] != "succeeded":
        run.reopen()
        prepare_run(run, console, vocab=model.vocab.read_bytes())
    return run.url


def main() -> None:
    options = parse_arguments()
    exit_with_torchrun()
    log_to_console()
    try:
        status = finetune(options)
    except CpmbeeError as error:
        log.error("error: %s", error)
        status = error.exit_code
    sys.exit(status)


def finetune(options: argparse.Namespace) -> int:
    """Run as the rank that torchrun's environment names. Returns the exit code."""
    model = _model(options)
    for flag, folder in (
        ("--save", options.save),
        ("--tensorboard", options.tensorboard),
        ("--log-dir", options.log_dir),
    ):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{flag} {folder}: {error.strerror}") from error
    world = init_world()
    run = Run.open(world.broadcast_object(lambda: begin(options, model, world.size)), StorageSpec())
    result = run.result()
    if result is not None:
        log.info("%s: %s already", run.url, result["state"])
        return exit_code(result)
    suffix = "-delta-best.pt" if options.use_delta else "-best.pt"
    exports = Exports(
        tensorboard=options.tensorboard,
        metrics=options.log_dir and options.log_dir / "metrics.jsonl",
        best=options.save / f"{options.save_name}{suffix}",
    )
    failure = work(run, world, lambda: model, exports)
    return 0 if failure is None else failure.exit_code


def _model(options: argparse.Namespace) -> ModelFiles:
    vocab: Path = options.vocab or options.load.parent / "vocab.txt"
    for flag, path in (("--model-config", options.model_config), ("--load", options.load), ("--vocab", vocab)):
        if not path.is_file():
            raise UsageError(f"{flag}: no such file: {path}")
    return ModelFiles(config=options.model_config, vocab=vocab, weights=(LocalFile(options.load),))


def _absolute(data: str) -> str:
    return data if "://" in data else str(Path(data).absolute())


if __name__ == "__main__":
    main()
