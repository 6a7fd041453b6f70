"""CPM-Bee as a plain torch module with the original's state-dict keys and outputs, computed per example.

Logits are computed at target positions only. Tensor names end in their shape: N tokens, D model width, T targets,
V vocabulary, X extra output columns.
"""

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.memory import TARGETS_AT_ONCE
from cpmbee_job.model.net.attention import GroupedAttention
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.net.layers import BucketPositionBias, Embedding, Encoder


class CpmBee(nn.Module):
    """The model. Parameters are uninitialized until `load_model` or `init_weights` fills them."""

    base_digest = ""
    """Digest of the weights that `load_model` loaded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.input_embedding = Embedding(config)
        self.position_bias = BucketPositionBias(config)

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Return hidden states (N, D) of all tokens, normalized for the output projection."""
        dropout_p = self.config.dropout_p if self.training else 0.0
        attend = GroupedAttention(self.position_bias, inputs, dropout_p)
        hidden_ND: Tensor = self.encoder(self.input_embedding(inputs.ids, inputs.subs), attend)
        return hidden_ND

    def target_losses(self, inputs: ModelInputs, hidden_ND: Tensor) -> Tensor:
        """Return the negative log-probability (T,) fp32 of each target, over the vocabulary and its example's extra
        columns. Computes the logits in chunks to limit memory."""
        extra_XD = self.input_embedding(inputs.ext_ids, inputs.ext_subs)
        hidden_TD = hidden_ND.index_select(0, inputs.target_positions)
        whole = (hidden_TD, inputs.targets.long(), inputs.columns)
        if len(inputs.targets) <= TARGETS_AT_ONCE:
            return self._losses(extra_XD, *whole)
        chunks = zip(*(torch.split(tensor, TARGETS_AT_ONCE) for tensor in whole), strict=True)
        losses = self._losses
        if torch.is_grad_enabled():
            losses = partial(checkpoint, losses, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([losses(extra_XD, *chunk) for chunk in chunks])

    def _losses(self, extra_XD: Tensor, hidden_TD: Tensor, targets_T: Tensor, columns_TX: Tensor) -> Tensor:
        logits = self.input_embedding.project(hidden_TD, extra_XD).float()
        logits[:, self.config.vocab_size :].masked_fill_(~columns_TX, float("-inf"))
        return F.cross_entropy(logits, targets_T, reduction="none")


@torch.no_grad()
def init_weights(model: CpmBee, seed: int) -> None:
    """Initialize weights with unit scale (layers divide by the root of their width) and norms with one; equal for equal
    seeds on any device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.empty(parameter.shape).normal_(generator=generator))
