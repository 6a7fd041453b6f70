"""What `data check` finds out about a data set, in one pass over its records."""

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpmbee_job.data.encode import encode_example
from cpmbee_job.data.reformat import ErrorList
from cpmbee_job.data.sources import Record, Rejection
from cpmbee_job.data.tokenizer import Tokenizer
from cpmbee_job.errors import DataError

_PERCENTILES = (50, 90, 95, 99)


class Check:
    """Counts and lengths of the records seen so far; grows by 8 bytes a record.

    `warnings` also takes what `sources.read_source` counts.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None = None, strict: bool = False) -> None:
        self.errors = ErrorList()
        self.warnings: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._strict = strict
        self._lengths = array("I")
        self._target_lengths = array("I")
        self._num_too_long = 0
        self._num_rejected = 0

    def add(self, record: Record) -> None:
        """Look at one record; one that is no example goes to `errors`."""
        if isinstance(record.content, Rejection):
            self._reject(record, record.content.error)
            return
        try:
            encoded = encode_example(self._tokenizer, record.content, strict=self._strict)
        except DataError as error:
            self._reject(record, error)
            return
        length = len(encoded.input_ids)
        self._lengths.append(length)
        self._target_lengths.append(length - int(encoded.context.sum()))
        self._num_too_long += self._max_length is not None and length > self._max_length
        self._warn("unknown pieces of text", int((encoded.input_ids == self._tokenizer.unk_id).sum()))
        self._warn("'<' taken as text", encoded.literals)
        self._warn("empty answers", _is_empty(record.content["<ans>"]))

    def report(self) -> dict[str, Any]:
        """The findings as a JSON document; lengths count tokens, `target_tokens` those that are predicted."""
        return {
            "rows": len(self._lengths) + self._num_rejected,
            "examples": len(self._lengths),
            "bad_rows": self._num_rejected,
            "max_length": self._max_length,
            "too_long": None if self._max_length is None else self._num_too_long,
            "tokens": _summary(self._lengths),
            "target_tokens": _summary(self._target_lengths),
            "warnings": dict(sorted(self.warnings.items())),
            "errors": [error.message for error in self.errors.named],
        }

    def _reject(self, record: Record, error: DataError) -> None:
        self._num_rejected += 1
        self.errors.add(error, record.location)

    def _warn(self, kind: str, count: int) -> None:
        if count:
            self.warnings[kind] += count


def _is_empty(answer: object) -> bool:
    """Whether an answer has no text anywhere."""
    return all(map(_is_empty, answer.values())) if isinstance(answer, Mapping) else not answer


def _summary(counts: "array[int]") -> dict[str, float] | None:
    """Total, extremes, mean and percentiles; None of nothing."""
    if not counts:
        return None
    numbers = np.frombuffer(counts, dtype=np.uint32)
    percentiles = np.percentile(numbers, _PERCENTILES, method="inverted_cdf")
    return {
        "total": int(numbers.sum()),
        "min": int(numbers.min()),
        "mean": round(float(numbers.mean()), 2),
        **{f"p{percent}": int(value) for percent, value in zip(_PERCENTILES, percentiles, strict=True)},
        "max": int(numbers.max()),
    }
