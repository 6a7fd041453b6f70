"""In-context samples: other examples of the data set that an example sees, with their answers.

The original's pretraining draws a number of them by given frequencies and reads on in the data set for each. Here they
are drawn from the examples around, so that each example is still trained on once in an epoch, and the draw depends on
nothing but the place in the input.
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
        """Samples that were drawn, but for which a row has no room."""

    def extend(self, examples: Sequence[Example], encoded: Sequence[Encoded], place: Sequence[int]) -> list[Samples]:
        """Each example with others of the same sequence; `place` seeds the draw."""
        # A stream of words that no version of numpy changes, as in `order`.
        words = np.random.Philox(np.random.SeedSequence(list(place))).random_raw(len(examples) * (self._most + 1))
        draws = words.reshape(len(examples), self._most + 1)
        wanted = np.searchsorted(self._upper, draws[:, 0] / 2.0**64, side="right")
        return [
            self._with_samples(examples, encoded, number, draws[number, 1 : 1 + wanted[number]].tolist())
            for number in range(len(examples))
        ]

    def _with_samples(
        self, examples: Sequence[Example], encoded: Sequence[Encoded], number: int, draws: list[int]
    ) -> Samples:
        samples = [encoded[number]]
        length = samples[0].input_ids.size
        used = {number}
        for draw in draws[: len(examples) - 1]:
            other = draw % len(examples)
            while other in used:
                other = (other + 1) % len(examples)
            used.add(other)
            example = examples[other]
            sample = encode_example(self._tokenizer, example, answer_order=answer_order(example), after=samples[-1])
            if length + sample.input_ids.size > self._max_length:
                self.num_left_out += 1
                continue
            samples.append(replace(sample, context=np.ones_like(sample.context)))
            length += sample.input_ids.size
        return tuple(samples)
