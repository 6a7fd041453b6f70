"""In-context samples: other examples of the dataset, with their answers, that an example sees.

The original's pretraining draws their number by given frequencies and reads ahead in the dataset for each. Here they
are drawn from neighboring examples, so each example is still trained on once per epoch, and the draw depends only on
the position in the input.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cpmbee_job.data.encode.encoder import Encoded, answer_order, encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.tokenizer import Tokenizer

Samples = tuple[Encoded, ...]
"""An example, then its in-context samples."""


class InContext:
    """Draws in-context samples for examples that are packed together."""

    def __init__(self, tokenizer: Tokenizer, frequencies: Sequence[float], max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._most = len(frequencies) - 1
        self._upper = np.cumsum(frequencies) / np.sum(frequencies)
        self.num_left_out = 0
        """Samples that were drawn but did not fit into a packed row."""

    def extend(self, examples: Sequence[tuple[Example, Encoded]], seed: Sequence[int]) -> list[Samples]:
        """Add to each example samples drawn from the others. Equal seeds give equal draws."""
        # This stream is the same in every version of numpy, as in `order`.
        words = np.random.Philox(np.random.SeedSequence(list(seed))).random_raw(len(examples) * (self._most + 1))
        draws = words.reshape(len(examples), self._most + 1)
        counts = np.searchsorted(self._upper, draws[:, 0] / 2.0**64, side="right")
        return [
            self._with_samples(examples, number, draws[number, 1 : 1 + counts[number]].tolist())
            for number in range(len(examples))
        ]

    def _with_samples(self, examples: Sequence[tuple[Example, Encoded]], number: int, draws: list[int]) -> Samples:
        samples = [examples[number][1]]
        length = samples[0].num_tokens
        used = {number}
        for draw in draws[: len(examples) - 1]:
            other = draw % len(examples)
            while other in used:
                other = (other + 1) % len(examples)
            used.add(other)
            example = examples[other][0]
            # Encoded again: numbers of tokens outside the vocabulary continue from the sample before.
            sample = encode_example(self._tokenizer, example, answer_order=answer_order(example), after=samples[-1])
            if length + sample.num_tokens > self._max_length:
                self.num_left_out += 1
                continue
            samples.append(replace(sample, context=np.ones_like(sample.context)))
            length += sample.num_tokens
        return tuple(samples)
