"""Beam search for one question: keep the best beams, collect finished ones, decide when to stop.

Scores, length normalization and stopping rules are the original's. No tensors here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Beam:
    """The words generated so far, and the token to feed to the model next."""

    words: tuple[tuple[int, int], ...] = ()
    """Each word (an output class) with the index of its answer."""
    score: float = 0.0
    """Sum of log-probabilities."""
    answer: int = 0
    """Index of the answer being generated."""
    word: int | None = None
    """The output class to feed; None starts an answer."""
    position: int = 0
    """Position of the fed token in its answer."""


@dataclass(frozen=True, order=True)
class Candidate:
    """A possible next word of a beam."""

    score: float
    beam: int
    word: int


@dataclass
class BeamSearch:
    """Beam search for one question with `num_answers` answers; `max_words` counts their words, end tokens included."""

    num_beams: int
    num_answers: int
    max_words: int
    end: int
    """The class that ends an answer."""
    beams: list[Beam] = field(init=False)
    step: int = 0
    _finished: list[tuple[float, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    _worst: float = 1e9

    def __post_init__(self) -> None:
        # All beams start equal. Only the first may propose candidates, or they would stay equal.
        self.beams = [Beam(score=0.0 if k == 0 else -1e9) for k in range(self.num_beams)]

    def advance(self, candidates: Sequence[Candidate]) -> list[int] | None:
        """Take the best 2 x num_beams candidates, best first. Returns the parent of each new beam, or None if the
        search has ended."""
        if self._is_decided(candidates[0].score):
            return None
        is_last = self.step == self.max_words
        beams: list[Beam] = []
        parents: list[int] = []
        for candidate in candidates:
            beam = self.beams[candidate.beam]
            words = (*beam.words, (candidate.word, beam.answer))
            ends = candidate.word == self.end
            if is_last or (ends and beam.answer + 1 == self.num_answers):
                self._finish(words, candidate.score)
                continue
            if ends:
                beams.append(Beam(words, candidate.score, beam.answer + 1))
            else:
                beams.append(Beam(words, candidate.score, beam.answer, candidate.word, beam.position + 1))
            parents.append(candidate.beam)
            if len(beams) == self.num_beams:
                break
        self.step += 1
        self.beams = beams
        return None if is_last else parents

    def best(self) -> list[list[int] | None]:
        """The words of each answer without the end token; None for answers that were not reached."""
        _, words = max(self._finished, key=lambda finished: finished[0])
        answers: list[list[int] | None] = [None] * self.num_answers
        for word, answer in words:
            answers[answer] = [*(answers[answer] or []), word]
        return [a[:-1] if a and a[-1] == self.end else a for a in answers]

    def _is_decided(self, best_score: float) -> bool:
        """Whether no candidate can beat the worst of the `num_beams` finished ones."""
        return len(self._finished) >= self.num_beams and self._worst >= best_score / self.step

    def _finish(self, words: tuple[tuple[int, int], ...], score: float) -> None:
        normalized = score / len(words)
        if len(self._finished) < self.num_beams or normalized > self._worst:
            self._finished.append((normalized, words))
            if len(self._finished) > self.num_beams:
                by_score = sorted((s, index) for index, (s, _) in enumerate(self._finished))
                del self._finished[by_score[0][1]]
                self._worst = by_score[1][0]
            else:
                self._worst = min(normalized, self._worst)
