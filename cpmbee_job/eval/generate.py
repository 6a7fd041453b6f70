"""Beam search over batches of examples, with the original's answers.

An example's answer does not depend on the others in its batch: each is restricted to the extra columns of its own.
Tensor names end in their shape: B questions, K beams of each, S tokens fed so far, V vocabulary, X extra columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import UsageError
from cpmbee_job.eval.beam import BeamSearch, Candidate
from cpmbee_job.eval.questions import Column, Question, ask, question_inputs
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.decoding import BeamDecoder

_FORBIDDEN = -10000.0
"""Logit of a class that a question may not be answered with, as in the original."""


@dataclass(frozen=True)
class BeamOptions:
    """How to search. Raises `UsageError` for values that make no sense."""

    beam_size: int = 3
    max_length: int = 100
    """Most tokens of an example's answers together."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that an answer has already become less likely."""

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_length < 1:
            raise UsageError("beam size and max length must be 1 or more")
        if not self.repetition_penalty >= 1:
            raise UsageError(f"the repetition penalty must be 1 or more, not {self.repetition_penalty}")


class Generator:
    """Answers examples with a model; the model is put into evaluation mode."""

    def __init__(self, model: CpmBee, tokenizer: Tokenizer, options: BeamOptions) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.options = options
        self.device = model.input_embedding.weight.device

    def answer(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The examples with their answers filled in, None where the length did not suffice. One batch."""
        return self.answer_questions([ask(self.tokenizer, example) for example in examples])

    @torch.no_grad()
    def answer_questions(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """The same for questions that have been read already."""
        columns = sorted({column for q in questions for column in q.texts if column[1] > 0})
        searches = self._search(questions, columns)
        vocab_size = self.model.config.vocab_size
        answered = []
        for question, search in zip(questions, searches, strict=True):
            texts = {token_id: text for (token_id, sub), text in question.texts.items() if sub == 0}
            texts.update({vocab_size + x: question.texts[c] for x, c in enumerate(columns) if c in question.texts})
            words = search.best()
            answered.append(question.answered([None if w is None else self.tokenizer.decode(w, texts) for w in words]))
        return answered

    def _search(self, questions: Sequence[Question], columns: Sequence[Column]) -> list[BeamSearch]:
        options, tokenizer = self.options, self.tokenizer
        decoder = BeamDecoder(self.model, question_inputs(questions, columns).to(self.device), options.beam_size)
        forbidden_BC = self._forbidden(questions, columns)
        searches = [
            # One more word than asked for: the end of the last answer.
            BeamSearch(options.beam_size, len(q.answer_segments), options.max_length + 1, tokenizer.eos_id)
            for q in questions
        ]
        active = list(range(len(questions)))
        fed_BKS = torch.empty(len(active), options.beam_size, 0, dtype=torch.int64, device=self.device)
        while active:
            tokens = [[self._token(beam.word, columns) for beam in searches[b].beams] for b in active]
            ids_BK = self._tensor([[token for token, _ in row] for row in tokens])
            subs_BK = self._tensor([[sub for _, sub in row] for row in tokens])
            segments_BK = self._tensor(
                [[questions[b].answer_segments[beam.answer] for beam in searches[b].beams] for b in active]
            )
            positions_BK = self._tensor([[beam.position for beam in searches[b].beams] for b in active])
            fed_BKS = torch.cat([fed_BKS, ids_BK[..., None].long()], dim=-1)
            logits = decoder.step(ids_BK, subs_BK, segments_BK, positions_BK)
            logits.masked_fill_(forbidden_BC[:, None], _FORBIDDEN)
            _penalise(logits, fed_BKS, options.repetition_penalty)
            scores_BK = torch.tensor([[beam.score for beam in searches[b].beams] for b in active], device=self.device)
            kept: list[int] = []
            parents: list[list[int]] = []
            for row, candidates in enumerate(_best(logits, scores_BK)):
                followed = searches[active[row]].advance(candidates)
                if followed is not None:
                    kept.append(row)
                    parents.append(followed)
            active = [active[row] for row in kept]
            if active:
                decoder.select(kept, parents)
                forbidden_BC = forbidden_BC[kept]
                fed_BKS = fed_BKS[torch.tensor(kept, device=self.device)[:, None], self._tensor(parents).long()]
        return searches

    def _forbidden(self, questions: Sequence[Question], columns: Sequence[Column]) -> Tensor:
        """Classes (B, V + X) that a question may not be answered with: other questions' columns, and unknown pieces
        where it has none of its own.
        """
        vocab_size, unknown = self.model.config.vocab_size, self.tokenizer.unk_id
        forbidden_BC = torch.zeros(len(questions), vocab_size + len(columns), dtype=torch.bool)
        for b, question in enumerate(questions):
            forbidden_BC[b, unknown] = (unknown, 0) not in question.texts
            forbidden_BC[b, vocab_size:] = torch.tensor([column not in question.texts for column in columns])
        return forbidden_BC.to(self.device)

    def _token(self, word: int | None, columns: Sequence[Column]) -> Column:
        """The token and sub-number that stand for an output class."""
        vocab_size = self.model.config.vocab_size
        if word is None:
            return self.tokenizer.bos_id, 0
        return columns[word - vocab_size] if word >= vocab_size else (word, 0)

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32, device=self.device)


def _penalise(logits: Tensor, fed_BKS: Tensor, penalty: float) -> None:
    """Make tokens that were fed before less likely, in place. As in the original, `<option_2>` counts as `<option>`."""
    if penalty != 1.0:
        scores = logits.gather(-1, fed_BKS)
        logits.scatter_(-1, fed_BKS, torch.where(scores < 0, scores * penalty, scores / penalty))


def _best(logits: Tensor, scores_BK: Tensor) -> list[list[Candidate]]:
    """For each question the 2 K best continuations of its beams, best first."""
    total = torch.log_softmax(logits, dim=-1) + scores_BK[..., None]
    num_beams, num_classes = total.shape[1:]
    values, indices = total.flatten(1).topk(2 * num_beams, dim=1)
    return [
        [Candidate(value, index // num_classes, index % num_classes) for value, index in zip(*pair, strict=True)]
        for pair in zip(values.tolist(), indices.tolist(), strict=True)
    ]
