"""An example as a question: its tokens without the answer, and the segments to answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import ANSWER, Example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import DataError
from cpmbee_job.model.net.inputs import ModelInputs

Column = tuple[int, int]
"""A token and its sub-number. A sub-number above 0 needs an extra output column."""


@dataclass(frozen=True, eq=False)
class Question:
    """An example of N tokens in S segments, as beam search needs it."""

    example: Example
    ids: NDArray[np.int32]
    """(N,) tokens of the example without its answer."""
    subs: NDArray[np.int32]
    segments: NDArray[np.int32]
    segment_rel: NDArray[np.uint8]
    """(S * S,) relations between segments."""
    num_segments: int
    answer_segments: tuple[int, ...]
    """The segment of each answer, in the order of the example's texts under `<ans>`."""
    texts: dict[Column, str]
    """Tokens of the example that the vocabulary does not contain (`<option_2>`, an emoji), by token and sub-number."""

    def answered(self, answers: Sequence[str | None]) -> dict[str, Any]:
        """Return the example with each text under `<ans>` replaced by its answer, or by None."""
        return {**self.example, ANSWER: _fill(self.example[ANSWER], iter(answers))}


def ask(tokenizer: Tokenizer, example: Example) -> Question:
    """Turn an example into a question. The value of `<ans>` defines only the number of answers and their keys.

    Raises `DataError` if there is nothing to answer, or with the place of an invalid token.
    """
    blank = {**example, ANSWER: _fill(example[ANSWER], repeat(""))}
    encoded = encode_example(tokenizer, blank)
    given = encoded.context == 1
    answer_segments = np.unique(encoded.segment_ids[~given])
    if not len(answer_segments):
        raise DataError(f"{ANSWER}: contains no text to answer")
    texts: dict[Column, str] = {}
    for token, sub_of in encoded.token_id_table.items():
        token_id = tokenizer.token_id(token)
        # `<ans>` marks the place of answers, and is never part of one.
        if token_id is not None and token != ANSWER:
            texts.update({(token_id, sub): encoded.ext_table[extended] for extended, sub in sub_of.items()})
    return Question(
        example=example,
        ids=encoded.input_ids[given],
        subs=encoded.input_id_subs[given],
        segments=encoded.segment_ids[given],
        segment_rel=encoded.segment_rel,
        num_segments=encoded.num_segments,
        answer_segments=tuple(answer_segments.tolist()),
        texts=texts,
    )


def question_inputs(questions: Sequence[Question], columns: Sequence[Column]) -> ModelInputs:
    """Collate questions into a batch without targets. Every token of a question attends to all others."""
    lengths = np.array([len(q.ids) for q in questions], dtype=np.int32)
    num_segments = np.array([q.num_segments for q in questions], dtype=np.int32)
    tables = np.array([len(q.segment_rel) for q in questions], dtype=np.int32)
    none = np.zeros(0, dtype=np.int32)
    columns_X2 = np.array(columns, dtype=np.int32).reshape(-1, 2)
    return ModelInputs.from_numpy(
        ids=np.concatenate([q.ids for q in questions]),
        subs=np.concatenate([q.subs for q in questions]),
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        context=np.ones(lengths.sum(), dtype=np.bool_),
        segments=np.concatenate([q.segments for q in questions]),
        samples=np.zeros(lengths.sum(), dtype=np.int32),
        num_segments=np.repeat(num_segments, lengths),
        rel_offset=np.repeat(np.cumsum(tables, dtype=np.int32) - tables, lengths),
        segment_rel=np.concatenate([q.segment_rel for q in questions]).astype(np.int32),
        lengths=lengths,
        target_positions=none,
        targets=none,
        ext_ids=columns_X2[:, 0],
        ext_subs=columns_X2[:, 1],
        columns=np.zeros((0, len(columns)), dtype=np.bool_),
        rows=np.arange(len(questions), dtype=np.int32),
    )


def _fill(node: Any, answers: Iterator[Any]) -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, answers) for key, value in node.items()}
    return next(answers)
