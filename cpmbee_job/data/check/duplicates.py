"""Examples that stand twice, in one data set or in training and evaluation, at 16 bytes an example.

A first reading keeps two hashes of each example: of its question (all but the answer), and of all of it. Sorted, each
column by itself, they say how many there are; where there are any, a second reading finds the places of some.
"""

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.data.encode.examples import ANSWER, Example
from cpmbee_job.data.read.sources import Place

MOST_NAMED = 5
"""Pairs of a kind whose places are named."""

_CHUNK = 1 << 16  # hashes that are compared at a time
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


class Duplicates(BaseModel):
    """Within a set, or (leakage) of the evaluation examples that stand in the training data too."""

    model_config = ConfigDict(frozen=True)

    repeated: int = Field(description="Examples that equal an earlier one (one of training), the order of keys aside.")
    contradicting: int = Field(
        description="Different examples whose question an earlier one (one of training) has, with another answer."
    )
    repeated_at: tuple[tuple[str, str], ...] = Field(
        (),
        description="Where some of them stand, `file:line`: first the earlier one, of leakage the evaluation example.",
    )
    contradicting_at: tuple[tuple[str, str], ...] = Field((), description="Likewise.")

    @property
    def any(self) -> bool:
        return bool(self.repeated or self.contradicting)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells an example from others: 64 bits of its question, and of all of it."""

    question: int
    whole: int

    @classmethod
    def of(cls, example: Example) -> Self:
        question = {key: value for key, value in example.items() if key != ANSWER}
        state = hashlib.blake2b(_canonical(question).encode(), digest_size=8)
        digest = state.digest()
        state.update(_canonical(example[ANSWER]).encode())
        whole = int.from_bytes(state.digest(), "little")
        # Without a question there is none that could be asked twice.
        return cls(int.from_bytes(digest, "little") if question else whole, whole)


class Fingerprints:
    """Those of a set: `add` them all, then `close`, then ask."""

    def __init__(self) -> None:
        self.questions = array("Q")
        self.wholes = array("Q")

    def add(self, fingerprint: Fingerprint) -> None:
        self.questions.append(fingerprint.question)
        self.wholes.append(fingerprint.whole)

    def close(self) -> None:
        """Sort both columns where they lie."""
        for column in (self.questions, self.wholes):
            _numbers(column).sort()


class Search:
    """How many duplicates there are, and where some of them stand: `look` for those."""

    def __init__(self, found: Duplicates, repeated: "_Pairs", contradicting: "_Pairs") -> None:
        self.found = found
        self.kinds = (repeated, contradicting)

    @classmethod
    def within(cls, known: Fingerprints) -> Self:
        """In one set. An example decides its question, so what there is more of different examples than of different
        questions is other answers.
        """
        examples = _different(known.wholes)
        found = Duplicates(repeated=len(known.wholes) - examples, contradicting=examples - _different(known.questions))
        return cls(
            found,
            _Pairs(found.repeated, True, lambda one: _count(known.wholes, one.whole) > 1),
            _Pairs(
                found.contradicting,
                False,
                lambda one: _count(known.questions, one.question) > _count(known.wholes, one.whole),
            ),
        )

    @classmethod
    def leakage(cls, train: Fingerprints, evaluation: Fingerprints) -> Self:
        """Of evaluation in training."""
        repeated = _shared(evaluation.wholes, train.wholes)
        found = Duplicates(repeated=repeated, contradicting=_shared(evaluation.questions, train.questions) - repeated)
        return cls(
            found,
            _Pairs(found.repeated, True, lambda one: _count(train.wholes, one.whole) > 0),
            _Pairs(
                found.contradicting,
                False,
                lambda one: _count(train.questions, one.question) > 0 and not _count(train.wholes, one.whole),
            ),
        )

    def named(self) -> Duplicates:
        """What was found, with the places that `look` has come by."""
        repeated, contradicting = (kind.pairs() for kind in self.kinds)
        return self.found.model_copy(update={"repeated_at": repeated, "contradicting_at": contradicting})


def look(examples: Iterable[tuple[Place | str, Example]], begin: Sequence[Search], end: Sequence[Search]) -> None:
    """Read a set again until all that it can contribute is found: of the pairs of `begin` the one half, of those of
    `end` the other. Leakage begins in the evaluation set and ends in training.
    """
    begin_kinds = [kind for search in begin for kind in search.kinds]
    end_kinds = [kind for search in end for kind in search.kinds]

    def is_done() -> bool:
        return all(kind.is_full for kind in begin_kinds) and all(kind.is_paired for kind in end_kinds)

    if is_done():
        return
    for place, example in examples:
        fingerprint = Fingerprint.of(example)
        for kind in end_kinds:
            kind.end(fingerprint, place)
        for kind in begin_kinds:
            kind.begin(fingerprint, place)
        if is_done():
            return


class _Pairs:
    """The first few pairs of examples that are equal (`same_answer`), or differ in the answer alone."""

    def __init__(self, num_expected: int, same_answer: bool, is_wanted: Callable[[Fingerprint], bool]) -> None:
        self._most = min(num_expected, MOST_NAMED)
        self._same_answer, self._is_wanted = same_answer, is_wanted
        self._begun: dict[int, tuple[Fingerprint, Place | str]] = {}
        self._ended: dict[int, Place | str] = {}

    @property
    def is_full(self) -> bool:
        return len(self._begun) == self._most

    @property
    def is_paired(self) -> bool:
        return len(self._ended) == len(self._begun)

    def begin(self, fingerprint: Fingerprint, place: Place | str) -> None:
        """Take an example for a pair's first, if it is one and there is room."""
        key = self._key(fingerprint)
        if not self.is_full and key not in self._begun and self._is_wanted(fingerprint):
            self._begun[key] = fingerprint, place

    def end(self, fingerprint: Fingerprint, place: Place | str) -> None:
        """Take an example for a pair's second, if it is one."""
        key = self._key(fingerprint)
        if key not in self._begun or key in self._ended:
            return
        if (self._begun[key][0].whole == fingerprint.whole) == self._same_answer:
            self._ended[key] = place

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Their places, the one that began a pair first."""
        return tuple((str(self._begun[key][1]), str(place)) for key, place in self._ended.items())

    def _key(self, fingerprint: Fingerprint) -> int:
        return fingerprint.whole if self._same_answer else fingerprint.question


def _numbers(column: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(column, dtype=np.uint64)


def _different(column: "array[int]") -> int:
    """Different numbers of a sorted column."""
    numbers = _numbers(column)
    count = min(numbers.size, 1)
    for start in range(1, numbers.size, _CHUNK):
        chunk = numbers[start - 1 : start + _CHUNK]
        count += int(np.count_nonzero(chunk[1:] != chunk[:-1]))
    return count


def _shared(column: "array[int]", known: "array[int]") -> int:
    """How many of a column's numbers a sorted one has."""
    numbers, among = _numbers(column), _numbers(known)
    if not among.size:
        return 0
    count = 0
    for start in range(0, numbers.size, _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        places = np.minimum(np.searchsorted(among, chunk), among.size - 1)
        count += int(np.count_nonzero(among[places] == chunk))
    return count


def _count(column: "array[int]", number: int) -> int:
    """How often a number stands in a sorted column."""
    return bisect_right(column, number) - bisect_left(column, number)
