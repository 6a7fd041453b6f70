"""Score the reference answers of examples: log-probability, loss, and accuracy for multiple choice.

Only an example's own extra columns compete for its targets, so its score does not depend on the rest of the batch. A
multiple-choice example has an answer that is a key of one of its objects, like
`{"options": {"<option_0>": ..., "<option_1>": ...}, "<ans>": "<option_1>"}`. Every key is scored as the answer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cpmbee_job.data.dataset.collate import collate_examples
from cpmbee_job.data.dataset.eval_digest import EvalDigest
from cpmbee_job.data.encode.encoder import Encoded, encode_example
from cpmbee_job.data.encode.examples import ANSWER, Example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import DataError, ModelError
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs


@dataclass(frozen=True)
class ExampleScore:
    """Number of target tokens of an answer (end tokens included), and the sum of their natural log-probabilities."""

    target_tokens: int
    logprob: float
    choice: str | None = None
    """Multiple choice: the most likely option."""
    correct: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a line of the per-example file."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass
class Summary:
    """Sums over examples."""

    examples: int = 0
    target_tokens: int = 0
    logprob: float = 0.0
    choices: int = 0
    correct: int = 0

    def add(self, score: ExampleScore) -> None:
        self.examples += 1
        self.target_tokens += score.target_tokens
        self.logprob += score.logprob
        if score.correct is not None:
            self.choices += 1
            self.correct += score.correct

    @property
    def loss(self) -> float:
        """Mean over all target tokens."""
        return -self.logprob / max(self.target_tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON. `accuracy` is present only if there were multiple-choice examples."""
        document: dict[str, Any] = {"examples": self.examples, "target_tokens": self.target_tokens, "loss": self.loss}
        document["perplexity"] = math.exp(self.loss) if self.loss < 700 else None
        if self.choices:
            document.update(choices=self.choices, correct=self.correct, accuracy=self.correct / self.choices)
        return document


@dataclass(frozen=True)
class _Encoding:
    """An example encoded once per possible answer; once if it is not multiple choice."""

    variants: tuple[Encoded, ...]
    options: tuple[str, ...]
    answer: int
    """Index of the variant with the reference answer."""
    location: str

    @property
    def num_tokens(self) -> int:
        return sum(len(variant.input_ids) for variant in self.variants)


class Evaluator:
    """Scores examples in batches of about `token_budget` tokens. Puts the model into evaluation mode."""

    def __init__(self, model: CpmBee, tokenizer: Tokenizer, token_budget: int = 8192) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.token_budget = token_budget
        self.device = model.input_embedding.weight.device
        self.digest = EvalDigest()
        """Digest of the examples scored so far."""

    def scores(self, examples: Iterable[tuple[str, Example]]) -> Iterator[ExampleScore]:
        """Yield the scores of (location, example) pairs in order.

        Raises `DataError` with the location of an example without text to predict, `ModelError` with the location of
        one whose log-probability is not finite.
        """
        batch: list[_Encoding] = []
        filled = 0
        for location, example in examples:
            encoding = self._encode(location, example)
            self.digest.add(encoding.variants[encoding.answer].arrays)
            if batch and filled + encoding.num_tokens > self.token_budget:
                yield from self._score(batch)
                batch, filled = [], 0
            batch.append(encoding)
            filled += encoding.num_tokens
        if batch:
            yield from self._score(batch)

    def _encode(self, location: str, example: Example) -> _Encoding:
        answer = example[ANSWER]
        options = _options(example)
        try:
            if not options or not isinstance(answer, str):
                encoded = encode_example(self.tokenizer, example)
                if encoded.context.all():
                    raise DataError(f"{ANSWER}: contains no text to predict")
                return _Encoding((encoded,), (), 0, location)
            variants = tuple(encode_example(self.tokenizer, {**example, ANSWER: option}) for option in options)
        except DataError as error:
            raise DataError(f"{location}: {error.message}", hint=error.hint) from error
        return _Encoding(variants, options, options.index(answer), location)

    def _score(self, batch: Sequence[_Encoding]) -> Iterator[ExampleScore]:
        logprobs = iter(self._logprobs([variant for encoding in batch for variant in encoding.variants]))
        for encoding in batch:
            of_variants = [next(logprobs) for _ in encoding.variants]
            logprob = of_variants[encoding.answer]
            if not math.isfinite(logprob):
                raise ModelError(f"{encoding.location}: the answer's log-probability is {logprob}")
            target_tokens = int((encoding.variants[encoding.answer].context == 0).sum())
            if not encoding.options:
                yield ExampleScore(target_tokens, logprob)
                continue
            best = max(range(len(of_variants)), key=of_variants.__getitem__)
            yield ExampleScore(target_tokens, logprob, encoding.options[best], best == encoding.answer)

    @torch.no_grad()
    def _logprobs(self, encoded: Sequence[Encoded]) -> list[float]:
        """Return the log-probability of each encoded answer."""
        tokenizer = self.tokenizer
        collated = collate_examples(encoded, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
        inputs = ModelInputs.from_numpy(**vars(collated)).to(self.device)
        owner_T = np.repeat(np.arange(len(encoded)), collated.lengths)[collated.target_positions]
        losses_T = self.model.target_losses(inputs, self.model(inputs)).double()
        sums = torch.zeros(len(encoded), dtype=torch.float64, device=self.device)
        sums.index_add_(0, torch.from_numpy(owner_T).to(self.device), losses_T)
        return [-loss for loss in sums.tolist()]


def _options(example: Example) -> tuple[str, ...]:
    """Return the options of a multiple-choice example; empty if it is not one."""
    answer = example[ANSWER]
    for key, value in example.items():
        if key != ANSWER and isinstance(value, dict) and isinstance(answer, str) and answer in value:
            return tuple(value)
    return ()
