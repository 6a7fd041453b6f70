from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cpmbee_job.cli.results.model_inputs import ModelOptions, load_examples, load_with_delta, open_model
from cpmbee_job.cli.results.on_cluster import OnClusterOptions
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import OUTPUT, AsJson, Format, StoreOptions
from cpmbee_job.run import keys

if TYPE_CHECKING:
    from cpmbee_job.run.deltas import StoredDelta
    from cpmbee_job.spec import StorageSpec


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ModelOptions):
    """What is scored, and how."""

    data: Annotated[str, option("--data", "URL", "Records with their answers: JSON lines, or a data set.")]
    format_name: Format = "bee"
    batch_tokens: Annotated[int, option("--batch-tokens", "TOKENS", "Tokens in one forward pass.", min=1)] = 8192


def evaluate(
    options: EvaluationOptions,
    on_cluster: OnClusterOptions,
    store: StoreOptions,
    per_example: Annotated[
        str | None, option("--per-example", "URL", "File for a JSON line per example: tokens, logprob.", OUTPUT)
    ] = None,
    record: Annotated[bool, flag("--record", "Store the scores with the delta, for `promote`.", OUTPUT)] = False,
    output: Annotated[str | None, option("--output", "URL", "File for the scores as JSON.", OUTPUT)] = None,
    as_json: AsJson = False,
) -> None:
    """Score the reference answers: loss, perplexity, accuracy.

    The loss is the mean over target tokens, in nats. The accuracy is the share of examples with `options` whose correct
    option scores best. The eval digest identifies the examples, independent of their order and file: losses with the
    same digest are comparable.

    With --on-cluster a pod computes and stores the scores, and the same command returns the stored scores. Local inputs
    are uploaded.

    Example: cpmbee-job evaluate --model models/cpm-bee-10b --delta runs/ccpm/r1 --data examples/eval.jsonl

    Example: cpmbee-job evaluate --on-cluster --model s3://models/bee/ --delta s3://runs/ccpm/r1 --data eval.jsonl
    """
    from cpmbee_job import documents
    from cpmbee_job.cli.results import recorded_scores
    from cpmbee_job.cli.shared.outputs import copy_lines, require_apart
    from cpmbee_job.launch.inference.start import InferenceTask
    from cpmbee_job.store.urls import open_object

    storage = store.storage()
    for place in (per_example, output):
        require_apart(place, options.data, storage)
    cluster = on_cluster.check()
    recorded = recorded_scores.find_delta(options.delta, storage) if record else None
    if recorded is not None:  # the delta itself, whatever its run or folder points to later
        options = replace(options, delta=recorded.url)
    if cluster is not None:
        flags = (f"--format={options.format_name}", f"--batch-tokens={options.batch_tokens}")
        task = InferenceTask("evaluate", options.model, options.delta, options.data, flags)
        results = cluster.run_in_pod(task, storage)
        if per_example is not None:
            copy_lines(results, keys.PER_EXAMPLE, per_example, storage)
        report = recorded_scores.parse(results, required=recorded is not None)
    else:
        report = _score(options, per_example, storage, recorded)
    if recorded is not None:
        details = {"data": options.data, "model": options.model, "evaluated_at": documents.now()}
        recorded_scores.record(recorded, {**report, **details})
    if output is not None:
        target, key = open_object(output, storage)
        target.put(key, documents.to_json(report))
    lines = []
    for key, value in report.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        lines.append(f"{key.replace('_', ' '):15}{shown}")
    console.print_result(report, lines, as_json=as_json)


def _score(
    options: EvaluationOptions, per_example: str | None, storage: "StorageSpec", recorded: "StoredDelta | None"
) -> dict[str, Any]:
    """Score the examples on this machine. Fails before the work if `recorded` is a delta of another base model."""
    from cpmbee_job.cli.results.recorded_scores import require_base
    from cpmbee_job.cli.shared.outputs import lines_to
    from cpmbee_job.data.encode.encoder import answer_order, shuffle_answer
    from cpmbee_job.eval.evaluate import Evaluator, Summary

    files, tokenizer = open_model(options.model, storage)
    examples = []
    for location, example in load_examples(options.data, storage, options.format_name):
        order = answer_order(example)  # as in training, so that both compute the same loss
        examples.append((location, example if order is None else shuffle_answer(example, order)))
    model = load_with_delta(options, files, storage)
    if recorded is not None:
        require_base(recorded, model.base_digest, options.model)
    evaluator = Evaluator(model, tokenizer, options.batch_tokens)
    summary = Summary()
    lines = nullcontext(None) if per_example is None else lines_to(per_example, storage)
    with lines as write, console.progress("evaluate", len(examples), "examples") as advance:
        for score in evaluator.scores(examples):
            summary.add(score)
            if write is not None:
                write(score.to_dict())
            advance(1)
    return summary.to_dict() | {"eval_digest": evaluator.digest.hexdigest(), "base_digest": model.base_digest}
