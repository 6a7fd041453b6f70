"""Verbs that ask a model: `predict`, `evaluate`."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpmbee_job import documents
from cpmbee_job.cli.cluster.follow import Timeout
from cpmbee_job.cli.results.model import Model, reading, warn_of_another_base
from cpmbee_job.cli.results.on_cluster import Job, OnCluster, Options
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, JobNamespace
from cpmbee_job.cli.shared.outputs import copy_lines, keep_apart, lines_to
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import DataError, ModelError, NotFoundError, RefusedError, SpecError, UsageError
from cpmbee_job.process import contract
from cpmbee_job.process.pod import num_cpus, require_contract
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_object, open_store

if TYPE_CHECKING:
    from cpmbee_job.data.encode.examples import Example
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.net.cpmbee import CpmBee
    from cpmbee_job.model.weights.model_folder import ModelFiles
    from cpmbee_job.run.deltas import StoredDelta

Delta = Annotated[
    str | None,
    typer.Option("--delta", help="Delta folder, .pt file, or a run's folder (then its best delta); also s3://."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to the command line."""
    app.command()(predict)
    app.command()(evaluate)


def predict(
    model: Model,
    source: Annotated[
        str,
        typer.Option("--input", help="Rows with <ans> to fill: JSON lines (.jsonl, .gz, .zst).", show_default=False),
    ],
    delta: Delta = None,
    output: Annotated[str | None, typer.Option("--output", help="File for the rows instead of stdout.")] = None,
    beam_size: Annotated[int, typer.Option("--beam-size", min=1, help="Beams of the search.")] = 3,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=1.0, help="Above 1: what was said already is less likely.")
    ] = 1.0,
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Most tokens of a row's answers.")] = 100,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows that are answered together.")] = 8,
    on_cluster: OnCluster = False,
    job: Job = None,
    timeout: Timeout = None,
    context: Context = None,
    namespace: JobNamespace = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Fill <ans> of each row by beam search. Prints the rows as JSON lines.

    With --on-cluster a pod does it, and the rows stay in the store: asked again, they are there.

    Example: cpmbee-job predict --model models/cpm-bee-10b --delta runs/ccpm/r1 --input questions.jsonl

    Example: cpmbee-job predict --on-cluster --job job.yaml --model s3://models/bee/ --input questions.jsonl
    """
    settings = storage(endpoint_url, path_style)
    keep_apart(output, source, settings)
    cluster = Options(on_cluster, job, timeout, context, namespace).check()
    if cluster is not None:
        flags = {"--beam-size": beam_size, "--repetition-penalty": repetition_penalty}
        flags |= {"--max-length": max_length, "--batch-size": batch_size}
        results = cluster.ask("predict", model, delta, source, flags, settings)
        copy_lines(results, keys.ROWS, output, settings)
        return

    from cpmbee_job.eval.generate import BeamOptions, Generator
    from cpmbee_job.eval.questions import ask
    from cpmbee_job.model.locate import fetch_model

    require_contract()
    options = BeamOptions(beam_size, max_length, repetition_penalty)
    files = fetch_model(model, settings)
    tokenizer = _tokenizer(files)
    # All rows are read before the first is answered: a bad one must not show after hours of work.
    questions = []
    for location, example in _examples(source, settings, "bee"):
        try:
            questions.append(ask(tokenizer, example))
        except DataError as error:
            raise DataError(f"{location}: {error.message}", hint=error.hint) from error
    generator = Generator(_load(model, files, delta, settings), tokenizer, options)
    with lines_to(output, settings) as write, console.item_progress("predict", len(questions), "rows") as progress:
        for begin in range(0, len(questions), batch_size):
            for row in generator.answer_questions(questions[begin : begin + batch_size]):
                write(row)
                progress.advance(progress.task_ids[0])
    if output is not None:
        console.say(f"{output}: {len(questions):,} rows")


def evaluate(
    model: Model,
    source: Annotated[
        str, typer.Option("--data", help="Examples with their answers: JSON lines, or a data set.", show_default=False)
    ],
    delta: Delta = None,
    format_name: Annotated[
        str, typer.Option("--format", help="How a row becomes an example: bee, ccpm, or module:function.")
    ] = "bee",
    per_example: Annotated[
        str | None, typer.Option("--per-example", help="File for one JSON line an example: tokens, log-probability.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the scores beside the delta, where `promote` finds them.")
    ] = False,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens that are scored together.")] = 8192,
    output: Annotated[str | None, typer.Option("--output", help="File for the scores as JSON; also s3://.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words.")] = False,
    on_cluster: OnCluster = False,
    job: Job = None,
    timeout: Timeout = None,
    context: Context = None,
    namespace: JobNamespace = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Score true answers: loss, perplexity, choices made right.

    The loss is the mean over target tokens, in nats. An example with `options` counts as a choice: all of them are
    scored, and the accuracy is how often the right one scores best. The eval digest names the examples, whatever their
    order or file: losses can be compared where it is the same.

    With --on-cluster a pod does it, and the scores stay in the store: asked again, they are there.

    Example: cpmbee-job evaluate --model models/cpm-bee-10b --delta runs/ccpm/r1 --data examples/eval.jsonl

    Example: cpmbee-job evaluate --on-cluster --model s3://models/bee/ --delta s3://runs/ccpm/r1 --data eval.jsonl
    """
    settings = storage(endpoint_url, path_style)
    for place in (per_example, output):
        keep_apart(place, source, settings)
    cluster = Options(on_cluster, job, timeout, context, namespace).check()
    kept = _recordable(delta, settings) if record else None
    if kept is not None:
        delta = kept.url  # whatever its run or folder stands for later
    if cluster is not None:
        flags = {"--format": format_name, "--batch-tokens": str(batch_tokens)}
        results = cluster.ask("evaluate", model, delta, source, flags, settings)
        if per_example is not None:
            copy_lines(results, keys.PER_EXAMPLE, per_example, settings)
        scores = results.get(keys.SCORES)
        (documents.Document if kept is None else _Recordable).parse(scores, f"{results.url}/{keys.SCORES}")
        report = documents.from_json(scores)
    else:
        report = _score(model, delta, source, format_name, per_example, batch_tokens, settings, kept)
    if kept is not None:
        _record(kept, {**report, "data": source, "model": model, "evaluated_at": documents.now()})
    if output is not None:
        store, key = open_object(output, settings)
        store.put(key, documents.to_json(report))
    if as_json:
        console.print_json(report)
    else:
        for key, value in report.items():
            shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            console.stdout.print(f"{key.replace('_', ' '):15}{shown}", markup=False)


def _score(
    model: str,
    delta: str | None,
    source: str,
    format_name: str,
    per_example: str | None,
    batch_tokens: int,
    settings: StorageSpec,
    kept: "StoredDelta | None",
) -> dict[str, Any]:
    """The scores, and a line for each example where those are wanted. `kept`: what they will be recorded with."""
    from cpmbee_job.eval.evaluate import Evaluator, Summary
    from cpmbee_job.model.locate import fetch_model

    require_contract()
    files = fetch_model(model, settings)
    tokenizer = _tokenizer(files)
    examples = [(location, _as_trained(example)) for location, example in _examples(source, settings, format_name)]
    loaded = _load(model, files, delta, settings)
    if kept is not None:
        _require_base(kept, loaded.base_digest, model)
    evaluator = Evaluator(loaded, tokenizer, batch_tokens)
    summary = Summary()
    lines = nullcontext(None) if per_example is None else lines_to(per_example, settings)
    with lines as write, console.item_progress("evaluate", len(examples), "examples") as progress:
        for score in evaluator.scores(examples):
            summary.add(score)
            if write is not None:
                write(score.to_dict())
            progress.advance(progress.task_ids[0])
    return summary.to_dict() | {"eval_digest": evaluator.digest.hexdigest(), "base_digest": loaded.base_digest}


class _Recordable(documents.Document):
    """What of a report is needed to record it; an older image may not have written it."""

    loss: float
    eval_digest: str
    base_digest: str


def _as_trained(example: "Example") -> "Example":
    """With its nested answer in the order in which training sees it, so that both find the same loss."""
    from cpmbee_job.data.encode.encoder import answer_order, shuffle_answer

    order = answer_order(example)
    return example if order is None else shuffle_answer(example, order)


def _recordable(url: str | None, settings: StorageSpec) -> "StoredDelta":
    """The delta to keep a score with."""
    from cpmbee_job.model.locate import delta_folder
    from cpmbee_job.run.deltas import read_delta

    if url is None:
        raise UsageError("--record keeps scores with a delta", hint="name it by --delta")
    folder = delta_folder(url, settings)
    try:
        return read_delta(open_store(folder, settings), "")
    except NotFoundError as error:
        raise NotFoundError(
            f"{url}: no delta with a manifest there, to keep scores with", hint="name a run's folder, or a delta's"
        ) from error


def _require_base(delta: "StoredDelta", base_digest: str, model: str) -> None:
    if delta.manifest.get("base_digest") != base_digest:
        raise RefusedError(f"--record: {delta.url} was trained on other weights than those of {model}")


def _record(delta: "StoredDelta", report: dict[str, Any]) -> None:
    from cpmbee_job.run.deltas import record_score

    _require_base(delta, report["base_digest"], report["model"])
    digest = report["eval_digest"]
    there = record_score(delta, digest, report)
    if there != report["loss"]:
        console.warn(f"{delta.url} has a score on these examples already, which stays: loss {there:.6f}")
    else:
        console.say(f"kept with {delta.url}: eval digest {digest}")


def _load(model_url: str, files: "ModelFiles", delta_url: str | None, settings: StorageSpec) -> "CpmBee":
    """The model with its delta, if any: on a GPU in half precision where there is one, else in fp32 on the CPU."""
    import torch

    from cpmbee_job.model.config import ModelConfig
    from cpmbee_job.model.locate import fetch_delta
    from cpmbee_job.model.lora import apply_delta
    from cpmbee_job.model.weights.model_folder import load_model

    if contract.CPUS_ENV in os.environ:  # in a container torch counts the node's
        torch.set_num_threads(num_cpus())
    delta = None if delta_url is None else fetch_delta(delta_url, settings)
    on_gpu = torch.cuda.is_available()
    half = on_gpu and ModelConfig.from_file(files.config).half
    dtype, device = torch.float16 if half else torch.float32, torch.device("cuda" if on_gpu else "cpu")
    with reading(sum(file.size for file in files.weights)) as progress:
        model = load_model(files, dtype, device, progress=progress)
    if delta is not None and delta_url is not None:
        warn_of_another_base(delta, model.base_digest, delta_url, model_url)
        apply_delta(model, delta)
    parameter = model.input_embedding.weight
    console.say(
        f"{model_url}: {sum(p.numel() for p in model.parameters()):,} weights, config in the "
        f"{model.config.dialect} dialect, {str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}"
    )
    return model


def _tokenizer(files: "ModelFiles") -> "Tokenizer":
    from cpmbee_job.data.encode.tokenizer import Tokenizer
    from cpmbee_job.model.config import ModelConfig

    tokenizer = Tokenizer.from_file(files.vocab)
    vocab_size = ModelConfig.from_file(files.config).vocab_size
    if tokenizer.vocab_size != vocab_size:
        raise ModelError(
            f"{files.vocab} has {tokenizer.vocab_size} entries, but {files.config} says vocab_size {vocab_size}",
            hint="the vocabulary is another model's",
        )
    return tokenizer


def _examples(url: str, settings: StorageSpec, format_name: str) -> "Sequence[tuple[str, Example]]":
    """All examples with their places. Raises `DataError` naming the first row that is none, and for no rows at all."""
    from cpmbee_job.data.read.sources import Rejection, read_source

    warnings: Counter[str] = Counter()
    examples = []
    try:
        for record in read_source(url, settings, format_name, warnings):
            if isinstance(record.content, Rejection):
                error = record.content.error
                raise DataError(f"{record.location}: {error.message}", hint=error.hint) from error
            examples.append((record.location, record.content))
    except SpecError as error:
        raise UsageError(error.message, hint=error.hint) from error
    for kind, count in sorted(warnings.items()):
        console.warn(f"{count:,} times: {kind}")
    if not examples:
        raise DataError(f"{url}: no rows in it")
    return examples
