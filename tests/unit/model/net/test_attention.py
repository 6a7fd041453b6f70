"""Who attends to whom, where softmax could divide nothing by nothing."""

import numpy as np
import pytest
import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.attention import GroupedAttention
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.net.layers import BucketPositionBias
from tests.oracle import flatten_rows, random_rows


def groups(config: ModelConfig, inputs: ModelInputs) -> GroupedAttention:
    bias = BucketPositionBias(config)
    torch.nn.init.normal_(bias.relative_attention_bias)
    return GroupedAttention(bias, inputs, dropout_p=0.0)


@pytest.mark.parametrize("seed", range(8))
def test_every_query_has_a_key_and_none_attends_to_padding(config: ModelConfig, seed: int) -> None:
    """Padding as a query sees its example's tokens, and what it gets is dropped."""
    inputs = ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(seed), 50, 2, 6)))
    attention = groups(config, inputs)
    assert any(not group.valid_BL.all() for group in inputs.groups)
    for group, bias_BHLL in zip(inputs.groups, attention.biases, strict=True):
        seen = bias_BHLL.isfinite()
        assert seen.any(-1).all()
        assert not (seen & ~group.valid_BL[:, None, None, :]).any()


def test_a_predicted_token_attends_to_itself(config: ModelConfig) -> None:
    """The least that an example can have: its output is its value, and no gradient is NaN."""
    arrays = flatten_rows(random_rows(np.random.default_rng(0), 50, 1, 1))
    one = {name: array[:1] for name, array in arrays.items() if len(array) == len(arrays["ids"])}
    alone = {"context": np.zeros(1, bool), "lengths": np.ones(1, np.int32), "rows": np.zeros(1, np.int32)}
    inputs = ModelInputs.from_numpy(**arrays | one | alone)
    q, k, v = (torch.randn(1, config.num_heads, config.dim_head, requires_grad=True) for _ in range(3))
    out = groups(config, inputs)(0, q, k, v)
    torch.testing.assert_close(out, v)
    out.sum().backward()
    for gradient, expected in ((q.grad, 0.0), (k.grad, 0.0), (v.grad, 1.0)):
        torch.testing.assert_close(gradient, torch.full_like(v, expected))
