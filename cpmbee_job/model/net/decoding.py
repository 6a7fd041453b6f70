"""Generate answers token by token; the beams of a question share its key-value cache.

Tensor names end in their shape: B questions, K beams of each, L padded length of the questions, S tokens generated so
far, H heads, h width of a head, D model width, V vocabulary, X extra output columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpmbee_job.model.net.attention import GroupedAttention, TokenView, pair_bias
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import AttentionGroup, ModelInputs


class _Recorder(GroupedAttention):
    """Attention that records the keys and values (N, H, h) of every layer."""

    def __init__(self, model: CpmBee, inputs: ModelInputs) -> None:
        super().__init__(model.position_bias, inputs, dropout_p=0.0)
        self.recorded: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q_NHh: Tensor, k_NHh: Tensor, v_NHh: Tensor) -> Tensor:
        self.recorded[layer] = (k_NHh, v_NHh)
        return super().__call__(layer, q_NHh, k_NHh, v_NHh)


class BeamDecoder:
    """The questions of a batch and the generated tokens of each beam."""

    @torch.no_grad()
    def __init__(self, model: CpmBee, questions: ModelInputs, num_beams: int) -> None:
        self.model = model
        self.num_beams = num_beams
        self.segment_rel = questions.segment_rel
        recorder = _Recorder(model, questions)
        model.encoder(model.input_embedding(questions.ids, questions.subs), recorder)
        whole = _one_group(questions)
        self.valid_BL = whole.valid_BL
        self.question = TokenView.of(questions, whole.gather_BL)
        self.question_kv = {
            layer: (k_NHh[whole.gather_BL].transpose(1, 2), v_NHh[whole.gather_BL].transpose(1, 2))
            for layer, (k_NHh, v_NHh) in recorder.recorded.items()
        }
        self.extra_XD = model.input_embedding(questions.ext_ids, questions.ext_subs)
        # Generated tokens: (B, K, S), and for each layer keys and values (B, K, S, H, h).
        self.positions = self.segments = questions.positions.new_empty(len(questions.lengths), num_beams, 0)
        self.own_kv: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, ids_BK: Tensor, subs_BK: Tensor, segments_BK: Tensor, positions_BK: Tensor) -> Tensor:
        """Feed the next token of each beam; returns the logits (B, K, V + X) fp32 of the token after it."""
        self.positions = torch.cat([self.positions, positions_BK[..., None]], dim=-1)
        self.segments = torch.cat([self.segments, segments_BK[..., None]], dim=-1)
        self._bias = self._step_bias(segments_BK, positions_BK)
        x_ND = self.model.input_embedding(ids_BK.flatten(), subs_BK.flatten())
        hidden_ND = self.model.encoder(x_ND, self._attend)
        logits = self.model.input_embedding.project(hidden_ND, self.extra_XD).float()
        return logits.view(*ids_BK.shape, -1)

    def select(self, questions: Sequence[int], beams: Sequence[Sequence[int]]) -> None:
        """Continue with these questions only, and in each with copies of these beams."""
        device = self.positions.device
        index_B1 = torch.tensor(questions, device=device)[:, None]
        index_BK = torch.tensor(beams, device=device)
        if len(questions) < len(self.valid_BL):
            index_B = index_B1[:, 0]
            self.valid_BL = self.valid_BL[index_B]
            self.question = TokenView.of(self.question, index_B)
            self.question_kv = {layer: (k[index_B], v[index_B]) for layer, (k, v) in self.question_kv.items()}
        self.positions = self.positions[index_B1, index_BK]
        self.segments = self.segments[index_B1, index_BK]
        self.own_kv = {layer: (k[index_B1, index_BK], v[index_B1, index_BK]) for layer, (k, v) in self.own_kv.items()}

    def _step_bias(self, segments_BK: Tensor, positions_BK: Tensor) -> Tensor:
        """Return the bias (B, H, K, L + S) of the newest tokens: to the question and to their own beam."""
        num_segments_BK = self.question.num_segments[:, :1].expand_as(segments_BK)
        rel_offset_BK = self.question.rel_offset[:, :1].expand_as(segments_BK)
        query = _answer_tokens(positions_BK, segments_BK, num_segments_BK, rel_offset_BK)
        question_BHKL = pair_bias(self.model.position_bias, query, self.question, self.segment_rel)
        question_BHKL.masked_fill_(~self.valid_BL[:, None, None, :], float("-inf"))

        num_segments, rel_offset = (t[..., None].expand_as(self.positions) for t in (num_segments_BK, rel_offset_BK))
        own = _answer_tokens(*(t.flatten(0, 1) for t in (self.positions, self.segments, num_segments, rel_offset)))
        newest = TokenView.of(own, (slice(None), slice(-1, None)))
        own_NH1S = pair_bias(self.model.position_bias, newest, own, self.segment_rel)
        own_BHKS = own_NH1S[:, :, 0].view(*segments_BK.shape, *own_NH1S.shape[1::2]).transpose(1, 2)
        return torch.cat([question_BHKL, own_BHKS], dim=-1)

    def _attend(self, layer: int, q_NHh: Tensor, k_NHh: Tensor, v_NHh: Tensor) -> Tensor:
        q_BKHh, k_BKHh, v_BKHh = (x.view(-1, self.num_beams, *x.shape[1:]) for x in (q_NHh, k_NHh, v_NHh))
        own_k, own_v = k_BKHh[:, :, None], v_BKHh[:, :, None]
        if layer in self.own_kv:
            own_k = torch.cat([self.own_kv[layer][0], own_k], dim=2)
            own_v = torch.cat([self.own_kv[layer][1], own_v], dim=2)
        self.own_kv[layer] = (own_k, own_v)
        question_k, question_v = self.question_kv[layer]
        scores = torch.cat(
            [torch.einsum("bkhd,bhld->bhkl", q_BKHh, question_k), torch.einsum("bkhd,bkshd->bhks", q_BKHh, own_k)],
            dim=-1,
        )
        weights = torch.softmax(scores.float() / math.sqrt(q_NHh.shape[-1]) + self._bias, dim=-1).to(q_NHh.dtype)
        to_question, to_own = torch.split(weights, [question_k.shape[2], own_k.shape[2]], dim=-1)
        out_BKHh = torch.einsum("bhkl,bhld->bkhd", to_question, question_v)
        out_BKHh = out_BKHh + torch.einsum("bhks,bkshd->bkhd", to_own, own_v)
        return out_BKHh.flatten(0, 1)


def _one_group(questions: ModelInputs) -> AttentionGroup:
    """Pad all questions to one length, in order."""
    device = questions.ids.device
    lengths_B = torch.tensor(questions.lengths, device=device)
    starts_B = lengths_B.cumsum(0) - lengths_B
    column_L = torch.arange(max(questions.lengths), device=device)
    valid_BL = column_L < lengths_B[:, None]
    return AttentionGroup(starts_B[:, None] + torch.where(valid_BL, column_L, 0), valid_BL)


def _answer_tokens(positions: Tensor, segments: Tensor, num_segments: Tensor, rel_offset: Tensor) -> TokenView:
    return TokenView(
        positions=positions,
        segments=segments,
        samples=torch.zeros_like(segments),
        context=torch.ones_like(segments, dtype=torch.bool),
        num_segments=num_segments,
        rel_offset=rel_offset,
    )
