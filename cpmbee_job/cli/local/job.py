"""Verbs about jobs: `init`, `validate`, `local`, `prepare`, `preprocess`."""

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.cli.shared import cluster_options, console, extras
from cpmbee_job.errors import NotFoundError, RefusedError, UsageError
from cpmbee_job.spec import load_spec

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.spec import JobSpec

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job spec.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the spec, like train.lr=2e-4. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]


class OnError(Enum):
    FAIL = "fail"
    SKIP = "skip"


TEMPLATE = """\
# A job for `cpmbee-job local {file}`. Every field is explained in docs/reference/spec.md.
name: {name}

# A folder with vocab.txt, config.json and the weights (*.safetensors or pytorch_model.bin).
# Here and below: s3://bucket/folder/, file:///folder or a path relative to this file.
model: models/cpm-bee-10b/

data:
  train: data/train.jsonl
  eval: data/eval.jsonl         # leave it out to train without evaluation and early stopping
  format: bee                   # rows are dicts with "<ans>"; `ccpm` or module:function convert others

output: runs/                   # <output>/<name>/<run id>/ appears here

train:
  epochs: 5
  batch_size: 5                 # most rows in one forward pass of one process
  max_length: 2048              # tokens in a row
  lr: 1.0e-4
  lr_decay_style: noam          # or linear, cosine, exponential, constant
  train_iters: 100              # horizon of that schedule, in steps
  warmup_iters: 1
  eval_interval: 50
  early_stop_patience: 5        # evaluations without a better loss; 0 never stops early
  checkpoint_interval: 50

# lora: {{r: 8, alpha: 16, modules: [project_q, project_v]}}
# workers: {{count: 1, gpus: 0}}                       # pods, and their GPUs, cpu, memory
# image: registry/cpmbee-job/train:0.1.0             # on a cluster, where output is an s3:// URL; inputs are uploaded
# cluster: {{namespace: training, queue: team-a}}
# storage: {{endpoint_url: http://localhost:8333}}   # for s3:// URLs outside AWS; credentials come from the environment
"""


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(validate)
    app.command()(local)
    app.command()(prepare)
    app.command()(preprocess)


def init(
    file: Annotated[Path, typer.Argument(metavar="[JOB.yaml]", help="Where to write it.")] = Path("job.yaml"),
) -> None:
    """Write a commented job spec to start from.

    Example: cpmbee-job init job.yaml
    """
    name = "".join(c if c.isalnum() else "-" for c in file.stem.lower()).strip("-") or "job"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(TEMPLATE.format(file=file, name=name))
    except FileExistsError as error:
        raise RefusedError(f"{file} exists already", hint="name another file") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    console.say(f"wrote {file}; change what it names, then `cpmbee-job validate {file}`")


def validate(
    job: JobFile,
    overrides: Overrides = None,
    server: Annotated[
        bool, typer.Option("--server", help="Ask the cluster too, by dry runs: operator, admission, quotas.")
    ] = False,
    context: cluster_options.Context = None,
    namespace: cluster_options.JobNamespace = None,
    as_json: AsJson = False,
) -> None:
    """Check a job spec and show it with all defaults filled in.

    Example: cpmbee-job validate job.yaml --server
    """
    from cpmbee_job.launch.checks.gpu_memory import require_room
    from cpmbee_job.launch.manifest.render import remarks

    spec = load_spec(job, overrides or ())
    require_room(spec)
    for remark in remarks(spec):
        console.warn(f"{job}: {remark}")
    if server:
        _ask_server(job, spec, cluster_options.connect(context, namespace or spec.cluster.namespace))
    if as_json:
        console.print_json(spec.model_dump(mode="json"))
    else:
        typer.echo(spec.to_yaml(), nl=False)
        console.say(f"{job} is valid; rows in a step: {spec.global_batch_size}")


def _ask_server(job: Path, spec: "JobSpec", cluster: "Cluster") -> None:
    """Raises what speaks against the job on that cluster."""
    from cpmbee_job.launch.checks.server_check import check_on_server, rendered

    verdict = check_on_server(cluster, spec, rendered(spec, cluster.namespace))
    for words in verdict.warnings:
        console.warn(words)
    for words in verdict.not_permitted:
        console.warn(f"not permitted, so not checked: {words}")
    place = f"{cluster.address}, namespace {cluster.namespace}"
    verdict.require_accepted(str(job), place)
    so_far = ", as far as could be checked" if verdict.not_permitted else ""
    console.say(f"{place} would accept {job}{so_far}")


def local(
    job: JobFile,
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Workers on this machine. Default: workers.count x max(workers.gpus, 1).")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(help="Name of the run. The same one goes on with a stopped run and reports a finished one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job here: prepare the data, train, publish the delta.

    Example: cpmbee-job local job.yaml --set train.epochs=1
    """
    from cpmbee_job.launch.local import run_local
    from cpmbee_job.run.run import Run, check_run_id, new_run_id

    spec = load_spec(job, overrides or ())
    extras.require("train")  # before anything is written
    storage = spec.storage.seen_by_launcher()
    run = Run.start(spec, new_run_id() if run_id is None else check_run_id(run_id), storage)
    console.say(f"run {run.url}")
    result = run_local(run, processes or spec.workers.count * max(spec.workers.gpus, 1))
    if as_json:
        console.print_json(result)
        return
    scores = result["scores"]
    best = (
        f"best eval loss {scores['eval_loss']:.4f} at step {scores['best_step']}"
        if scores["best_step"]
        else "no evaluation"
    )
    console.say(f"succeeded after {result['steps']} steps ({result['reason']}), {best}")
    typer.echo(run.url)


def prepare(job: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Tokenize, encode and pack a job's data sets. What exists already is not done again.

    Example: cpmbee-job prepare job.yaml
    """
    from cpmbee_job.data.prepare.init_step import describe, prepare_bar, prepare_job

    spec = load_spec(job, overrides or ())
    with prepare_bar(console.stderr) as progress:
        record = prepare_job(spec, spec.storage.seen_by_launcher(), progress=progress)
    if as_json:
        console.print_json(record)
        return
    for split in ("train", "eval"):
        if record[split] is not None:
            typer.echo(describe(split, record[split]))


def preprocess(
    input_folder: Annotated[str, typer.Option("--input", help="Folder of files with JSON lines.", show_default=False)],
    output_path: Annotated[str, typer.Option("--output_path", help="Folder to write to.", show_default=False)],
    output_name: Annotated[str, typer.Option("--output_name", help="Name of the data files.", show_default=False)],
    vocab: Annotated[Path | None, typer.Option(help="Vocabulary: check also that examples can be encoded.")] = None,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="What a row that can't be used does: end it all, or be left out.")
    ] = OnError.FAIL,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what would be mended with a warning, like a number for a text.")
    ] = False,
) -> None:
    """Check rows and write them as data sets.

    In place of the original's preprocess_dataset.py. Each input file makes one set: that of train.jsonl is the folder
    OUTPUT_PATH/train; fine-tuning takes it as --dataset.

    Example: cpmbee-job preprocess --input raw --output_path bin_data --output_name ccpm
    """
    from cpmbee_job.data.prepare.init_step import counted, prepare_bar
    from cpmbee_job.data.prepare.parts import PrepareSettings
    from cpmbee_job.data.prepare.prepare import preprocess as write_sets
    from cpmbee_job.process.pod import num_cpus

    if vocab is not None and not vocab.is_file():
        raise NotFoundError(f"{vocab}: no such file")
    if not re.fullmatch(r"[\w.-]+", output_name):
        raise UsageError(f"--output_name {output_name!r}: letters, digits, '.', '-' and '_'")
    with prepare_bar(console.stderr) as progress:
        indexes = write_sets(
            input_folder,
            output_path,
            output_name,
            None if vocab is None else vocab.read_bytes(),
            settings=PrepareSettings(max_length=None, on_error=on_error.value, strict=strict),
            workers=num_cpus(),
            progress=progress,
        )
    for folder, index in indexes.items():
        typer.echo(f"{folder}: {index.examples} examples{counted(index.skipped, index.warnings)}")
