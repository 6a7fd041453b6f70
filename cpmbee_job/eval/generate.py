"""Answer batches of examples by beam search, equal to the original.

Each example may use only its own extra columns, so its answer does not depend on the rest of the batch.
Tensor names end in their shape: B questions, K beams, S tokens fed so far, V vocabulary, X extra columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import UsageError
from cpmbee_job.eval.beam import BeamSearch, Candidate
from cpmbee_job.eval.questions import Column, Question, question_inputs
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.decoding import BeamDecoder

_FORBIDDEN = -10000.0
"""Logit of a class that is not allowed in the answer, as in the original."""


@dataclass(frozen=True)
class BeamOptions:
    """Settings of the search. Raises `UsageError` for invalid values."""

    beam_size: int = 3
    max_length: int = 100
    """Maximum number of tokens of all answers of an example."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens less likely that the answer already contains."""

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_length < 1:
            raise UsageError("beam size and max length must be at least 1")
        if not self.repetition_penalty >= 1:
            raise UsageError(f"repetition penalty must be at least 1 (got {self.repetition_penalty})")


class Generator:
    """Answers examples with a model. Puts the model into evaluation mode."""

    def __init__(self, model: CpmBee, tokenizer: Tokenizer, options: BeamOptions) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.options = options
        self.device = model.input_embedding.weight.device

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Return one batch of examples with their answers filled in; None where `max_length` was reached first."""
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
            # One more word than `max_length`: the end token of the last answer.
            BeamSearch(options.beam_size, len(q.answer_segments), options.max_length + 1, tokenizer.eos_id)
            for q in questions
        ]
        active = list(range(len(questions)))
        fed_BKS = torch.empty(len(active), options.beam_size, 0, dtype=torch.int64, device=self.device)
        while active:
            tokens = [
                [
                    (*self._token(beam.word, columns), questions[b].answer_segments[beam.answer], beam.position)
                    for beam in searches[b].beams
                ]
                for b in active
            ]
            fields = torch.tensor(tokens, dtype=torch.int32, device=self.device)
            ids_BK, subs_BK, segments_BK, positions_BK = fields.unbind(-1)
            fed_BKS = torch.cat([fed_BKS, ids_BK[..., None].long()], dim=-1)
            logits = decoder.step(ids_BK, subs_BK, segments_BK, positions_BK)
            logits.masked_fill_(forbidden_BC[:, None], _FORBIDDEN)
            _penalize(logits, fed_BKS, options.repetition_penalty)
            scores_BK = torch.tensor([[beam.score for beam in searches[b].beams] for b in active], device=self.device)
            advanced = [searches[b].advance(best) for b, best in zip(active, _best(logits, scores_BK), strict=True)]
            kept = [b for b, beam_parents in enumerate(advanced) if beam_parents is not None]
            parents = [beam_parents for beam_parents in advanced if beam_parents is not None]
            active = [active[b] for b in kept]
            if active:
                decoder.select(kept, parents)
                forbidden_BC = forbidden_BC[kept]
                kept_B1, parents_BK = torch.tensor(kept)[:, None], torch.tensor(parents)
                fed_BKS = fed_BKS[kept_B1.to(self.device), parents_BK.to(self.device)]
        return searches

    def _forbidden(self, questions: Sequence[Question], columns: Sequence[Column]) -> Tensor:
        """Return a mask (B, V + X) of the classes that are not allowed in each answer: the columns of other questions,
        and the unknown token if the question has none."""
        vocab_size, unknown = self.model.config.vocab_size, self.tokenizer.unk_id
        forbidden_BC = torch.zeros(len(questions), vocab_size + len(columns), dtype=torch.bool)
        for b, question in enumerate(questions):
            forbidden_BC[b, unknown] = (unknown, 0) not in question.texts
            forbidden_BC[b, vocab_size:] = torch.tensor([column not in question.texts for column in columns])
        return forbidden_BC.to(self.device)

    def _token(self, word: int | None, columns: Sequence[Column]) -> Column:
        """Return the token and sub-number of an output class."""
        vocab_size = self.model.config.vocab_size
        if word is None:
            return self.tokenizer.bos_id, 0
        return columns[word - vocab_size] if word >= vocab_size else (word, 0)


def _penalize(logits: Tensor, fed_BKS: Tensor, penalty: float) -> None:
    """Make tokens less likely that were fed before, in place. `<option_2>` counts as `<option>`, as in the original."""
    if penalty != 1.0:
        scores = logits.gather(-1, fed_BKS)
        logits.scatter_(-1, fed_BKS, torch.where(scores < 0, scores * penalty, scores / penalty))


def _best(logits: Tensor, scores_BK: Tensor) -> list[list[Candidate]]:
    """Return the 2 K best candidates of each question, best first."""
    total = torch.log_softmax(logits, dim=-1) + scores_BK[..., None]
    num_beams, num_classes = total.shape[1:]
    values, indices = total.flatten(1).topk(2 * num_beams, dim=1)
    return [
        [Candidate(value, index // num_classes, index % num_classes) for value, index in zip(*pair, strict=True)]
        for pair in zip(values.tolist(), indices.tolist(), strict=True)
    ]
