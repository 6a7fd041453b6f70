"""Find repeated and contradicting examples, within a dataset and between training and evaluation data.

Kept of each example are two 64-bit hashes, of its question (everything but the answer) and of all of it, and its
location: 20 bytes.
"""

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.check.report import Duplicates
from cpmbee_job.data.encode.examples import ANSWER, Example, canonical_json
from cpmbee_job.data.read.locations import Location, Locations

MOST_NAMED = 5
"""Number of pairs of each kind whose locations are reported."""

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]


class Fingerprints:
    """The hashes and locations of the examples of a dataset. Read the columns only after the last `add`."""

    def __init__(self) -> None:
        self._questions, self._wholes = array("Q"), array("Q")
        self.locations = Locations()

    def add(self, example: Example, location: Location) -> None:
        question = {key: value for key, value in example.items() if key != ANSWER}
        state = hashlib.blake2b(canonical_json(question).encode(), digest_size=8)
        question_digest = state.digest()
        state.update(canonical_json(example[ANSWER]).encode())
        whole = state.digest()
        # Examples without a question share none.
        self._questions.append(int.from_bytes(question_digest if question else whole, "little"))
        self._wholes.append(int.from_bytes(whole, "little"))
        self.locations.append(location)

    @property
    def questions(self) -> Keys:
        return np.frombuffer(self._questions, dtype=np.uint64)

    @property
    def wholes(self) -> Keys:
        return np.frombuffer(self._wholes, dtype=np.uint64)


def within(known: Fingerprints) -> Duplicates:
    """Find the duplicates within a dataset."""
    in_order = np.sort(known.questions)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    shared = np.flatnonzero(_first(repeated, known.questions) >= 0)  # examples that share their question
    wholes, questions = known.wholes[shared], known.questions[shared]
    first_whole, first_question = _first(wholes, wholes), _first(questions, questions)
    own = np.arange(shared.size)
    repeats = np.flatnonzero(first_whole != own)
    contradicts = np.flatnonzero((first_whole == own) & (first_question != own))
    at = known.locations
    return Duplicates(
        repeated=repeats.size,
        contradicting=contradicts.size,
        repeated_at=_named(shared[first_whole[repeats]], at, shared[repeats], at),
        contradicting_at=_named(shared[first_question[contradicts]], at, shared[contradicts], at),
    )


def leakage(train: Fingerprints, evaluation: Fingerprints) -> Duplicates:
    """Find the evaluation examples that the training data contains."""
    shared = np.flatnonzero(_first(evaluation.questions, train.questions) >= 0)
    train_whole = _first(train.wholes[shared], evaluation.wholes)
    train_question = _first(train.questions[shared], evaluation.questions)
    repeats = np.flatnonzero(train_whole >= 0)
    contradicts = np.flatnonzero((train_whole < 0) & (train_question >= 0))
    at, train_at = evaluation.locations, train.locations
    return Duplicates(
        repeated=repeats.size,
        contradicting=contradicts.size,
        repeated_at=_named(repeats, at, shared[train_whole[repeats]], train_at),
        contradicting_at=_named(contradicts, at, shared[train_question[contradicts]], train_at),
    )


def _first(known: Keys, keys: Keys) -> Numbers:
    """Return for each key the index of the first equal one in `known`, or -1."""
    values, first = np.unique(known, return_index=True)
    if not values.size:
        return np.full(keys.size, -1)
    found = np.minimum(np.searchsorted(values, keys), values.size - 1)
    return np.where(values[found] == keys, first[found], -1)


def _named(ones: Numbers, at: Locations, others: Numbers, other_at: Locations) -> tuple[tuple[str, str], ...]:
    """Return the locations of the first few pairs without common examples, ordered by their second example."""
    _, chosen = np.unique(others, return_index=True)
    chosen.sort()
    _, first = np.unique(ones[chosen], return_index=True)
    chosen = chosen[first[:MOST_NAMED]]
    chosen = chosen[np.argsort(others[chosen])]
    pairs = zip(ones[chosen].tolist(), others[chosen].tolist(), strict=True)
    return tuple((str(at[one]), str(other_at[other])) for one, other in pairs)
