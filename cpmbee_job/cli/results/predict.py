from dataclasses import dataclass
from typing import Annotated

from cpmbee_job.cli.results.model_inputs import ModelOptions, load_examples, load_with_delta, open_model
from cpmbee_job.cli.results.on_cluster import OnClusterOptions
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import StoreOptions
from cpmbee_job.errors import DataError
from cpmbee_job.run import keys


@dataclass(frozen=True)
class SearchOptions:
    """Options of the beam search. Names and order of the fields identify stored results (`InferenceTask.flags`)."""

    beam_size: Annotated[int, option("--beam-size", "N", "Number of beams.", min=1)] = 3
    repetition_penalty: Annotated[
        float, option("--repetition-penalty", "FACTOR", "Above 1, repeated tokens become less likely.", min=1.0)
    ] = 1.0
    max_length: Annotated[int, option("--max-length", "TOKENS", "Length limit of an example's answers.", min=1)] = 100
    batch_size: Annotated[int, option("--batch-size", "N", "Examples in one forward pass.", min=1)] = 8


def predict(
    inputs: ModelOptions,
    source: Annotated[str, option("--input", "URL", "Examples with <ans> to fill: JSON lines (.jsonl, .gz, .zst).")],
    search: SearchOptions,
    on_cluster: OnClusterOptions,
    store: StoreOptions,
    output: Annotated[str | None, option("--output", "URL", "File for the results. Default: stdout.")] = None,
) -> None:
    """Fill <ans> of each example by beam search.

    Prints the filled examples as JSON lines. With --on-cluster a pod computes and stores them, and the same command
    returns the stored results. Local inputs are uploaded.

    Example: cpmbee-job predict --model models/cpm-bee-10b --delta runs/ccpm/r1 --input questions.jsonl

    Example: cpmbee-job predict --on-cluster --job job.yaml --model s3://models/bee/ --input questions.jsonl
    """
    from cpmbee_job.cli.shared.outputs import copy_lines, lines_to, require_apart
    from cpmbee_job.launch.inference.start import InferenceTask

    storage = store.storage()
    require_apart(output, source, storage)
    if cluster := on_cluster.check():
        flags = tuple(f"--{name.replace('_', '-')}={value}" for name, value in vars(search).items())
        results = cluster.run_in_pod(InferenceTask("predict", inputs.model, inputs.delta, source, flags), storage)
        copy_lines(results, keys.ROWS, output, storage)
        return

    from cpmbee_job.eval.generate import BeamOptions, Generator  # torch, which a launcher may not have
    from cpmbee_job.eval.questions import ask

    files, tokenizer = open_model(inputs.model, storage)
    # Read all examples before the first prediction: an invalid one must not surface after hours of work.
    questions = []
    for location, example in load_examples(source, storage, "bee"):
        try:
            questions.append(ask(tokenizer, example))
        except DataError as error:
            raise DataError(f"{location}: {error.message}", hint=error.hint) from error
    model = load_with_delta(inputs, files, storage)
    generator = Generator(model, tokenizer, BeamOptions(search.beam_size, search.max_length, search.repetition_penalty))
    total = len(questions)
    with lines_to(output, storage) as write, console.progress("predict", total, "examples") as advance:
        for begin in range(0, total, search.batch_size):
            for filled in generator.answer(questions[begin : begin + search.batch_size]):
                write(filled)
                advance(1)
    if output is not None:
        console.say(f"{output}: {total:,} examples")
