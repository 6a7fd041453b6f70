from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.dense import IGNORED, dense_logits, dense_losses
from cpmbee_job.model.memory import TARGETS_AT_ONCE
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from tests.oracle import flatten_rows, random_rows, target_logits


def losses_of(model, rows):
    inputs = ModelInputs.from_numpy(**flatten_rows(rows))
    return model.target_losses(inputs, model(inputs))


@pytest.mark.parametrize("seed", range(6))
def test_losses_equal_those_of_the_dense_formulation(model, config, seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 50, int(rng.integers(1, 4)), int(rng.integers(1, 7)))
    torch.testing.assert_close(
        losses_of(model, rows), dense_losses(dict(model.state_dict()), config, rows), atol=5e-6, rtol=1e-5
    )


def test_logits_equal_those_of_the_dense_formulation(model, config):
    rows = random_rows(np.random.default_rng(1), 50, 2, 3)
    inputs = ModelInputs.from_numpy(**flatten_rows(rows))
    dense = dense_logits(dict(model.state_dict()), config, rows)[torch.from_numpy(rows["target"] != IGNORED)]
    torch.testing.assert_close(target_logits(model, inputs, model(inputs)), dense, atol=5e-6, rtol=1e-5)


def test_gradients_equal_those_of_the_dense_formulation(model, config):
    rows = random_rows(np.random.default_rng(2), 50, 2, 4)
    losses_of(model, rows).mean().backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    dense_losses(weights, config, rows).mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("masks", [((True, False), (False, True)), ((False, False), (True, True))])
def test_pruned_blocks_have_no_weights(config, masks):
    config = replace(config, mask_modules=masks)
    model = CpmBee(config)
    init_weights(model, seed=0)
    rows = random_rows(np.random.default_rng(3), 50, 1, 3)
    expected = dense_losses(dict(model.state_dict()), config, rows)
    torch.testing.assert_close(losses_of(model, rows), expected, atol=5e-6, rtol=1e-5)


def test_the_order_of_examples_does_not_matter(model):
    rows = random_rows(np.random.default_rng(4), 50, 3, 3)
    order = [2, 0, 1]
    turned = {name: a if name.startswith("ext") else a[order] for name, a in rows.items()}
    counts = (rows["target"] != IGNORED).sum(1)
    parts = losses_of(model, rows).split(counts.tolist())
    torch.testing.assert_close(losses_of(model, turned), torch.cat([parts[r] for r in order]), atol=2e-6, rtol=1e-5)


def test_chunks_of_targets_give_the_same_gradient(model):
    inputs = ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(5), 50, 16, 12)))
    assert len(inputs.targets) > 1.5 * TARGETS_AT_ONCE
    whole = F.cross_entropy(target_logits(model, inputs, model(inputs)), inputs.targets.long(), reduction="none")
    whole.mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    chunked = model.target_losses(inputs, model(inputs))
    chunked.mean().backward()
    torch.testing.assert_close(chunked, whole, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model.target_losses(inputs, model(inputs)), whole, atol=2e-6, rtol=1e-5)


def test_extra_columns_compete_only_for_their_own_targets(model):
    rows = random_rows(np.random.default_rng(6), 50, 1, 2)
    inputs = ModelInputs.from_numpy(**flatten_rows(rows))
    inputs = replace(inputs, targets=inputs.targets % 50)
    hidden = model(inputs)
    none = torch.zeros(len(inputs.targets), len(inputs.ext_ids), dtype=torch.bool)
    alone = model.target_losses(replace(inputs, columns=none), hidden)
    logits = target_logits(model, inputs, hidden)[:, :50]
    torch.testing.assert_close(alone, F.cross_entropy(logits, inputs.targets.long(), reduction="none"))
    everything = F.cross_entropy(target_logits(model, inputs, hidden), inputs.targets.long(), reduction="none")
    torch.testing.assert_close(model.target_losses(replace(inputs, columns=~none), hidden), everything)


def test_dropout_is_used_in_training_only(config):
    model = CpmBee(replace(config, dropout_p=0.5))
    init_weights(model, seed=0)
    rows = random_rows(np.random.default_rng(7), 50, 1, 2)
    assert not torch.equal(losses_of(model, rows), losses_of(model, rows))
    model.eval()
    torch.testing.assert_close(losses_of(model, rows), dense_losses(dict(model.state_dict()), config, rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_fp32(model, dtype):
    rows = random_rows(np.random.default_rng(8), 50, 1, 2)
    expected = losses_of(model, rows)
    half = losses_of(model.to(dtype), rows)
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < (0.05 if dtype == torch.float16 else 0.5)


def test_first_weights_depend_on_the_seed_alone(config):
    first, second, other = CpmBee(config), CpmBee(config), CpmBee(config)
    init_weights(first, seed=1)
    init_weights(second, seed=1)
    init_weights(other, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.input_embedding.weight, other.input_embedding.weight)
