"""The model against the answers of the original code, fp32 on CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.dense import dense_losses
from cpmbee_job.model.lora import apply_delta, merged_layout, merged_weights, read_delta
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.weights.model_folder import find_model, load_model
from cpmbee_job.model.weights.stored import StoredWeights
from tests.conftest import needs_reference
from tests.oracle import flatten_rows, target_logits

pytestmark = needs_reference
CPU = torch.device("cpu")


@pytest.fixture
def folder(reference: Path) -> Path:
    return reference / "reference"


@pytest.fixture
def model(folder: Path) -> CpmBee:
    torch.set_num_threads(1)
    return load_model(find_model(folder), torch.float32, CPU)


@pytest.fixture
def rows(folder: Path) -> dict[str, np.ndarray]:
    arrays = np.load(folder / "packed_batches.npz")
    return {name[2:]: arrays[name] for name in arrays if name.startswith("0.")}


@pytest.fixture
def inputs(rows) -> ModelInputs:
    return ModelInputs.from_numpy(**flatten_rows(rows))


def check_gradients(model, expected):
    compared = 0
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in expected:
            np.testing.assert_allclose(
                parameter.grad.numpy(), expected[f"grad.{name}"], rtol=1e-4, atol=5e-6, err_msg=name
            )
            compared += 1
    assert compared == sum(name.startswith("grad.") for name in expected)


def test_base(model, inputs, folder):
    expected = np.load(folder / "model.npz")
    hidden = model(inputs)
    losses, logits = model.target_losses(inputs, hidden), target_logits(model, inputs, hidden).detach().numpy()
    assert losses.mean().item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    np.testing.assert_allclose(-losses.detach().numpy(), expected["target_logprob"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), expected["argmax_of_targets"])
    np.testing.assert_allclose(logits[:, :64], expected["logits_first64_of_targets"], atol=1e-5)
    np.testing.assert_allclose(logits[:, model.config.vocab_size :], expected["ext_logits_of_targets"], atol=1e-5)
    losses.mean().backward()
    check_gradients(model, expected)


def test_delta(model, inputs, folder):
    expected = np.load(folder / "lora.npz")
    apply_delta(model, read_delta(folder / "delta.pt"))
    hidden = model(inputs)
    loss = model.target_losses(inputs, hidden).mean()
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    np.testing.assert_array_equal(target_logits(model, inputs, hidden).argmax(-1), expected["argmax_of_targets"])
    loss.backward()
    check_gradients(model, expected)


def test_merged_delta(model, inputs, folder):
    delta = read_delta(folder / "delta.pt")
    base = StoredWeights(find_model(folder).weights)
    model.load_state_dict(dict(merged_weights(base.stream(), delta, merged_layout(base.layout, delta))))
    loss = model.target_losses(inputs, model(inputs)).mean().item()
    assert loss == pytest.approx(np.load(folder / "lora.npz")["loss"].item(), rel=1e-5)


def test_the_oracle_is_right_too(model, rows, folder):
    losses = dense_losses(dict(model.state_dict()), model.config, rows)
    np.testing.assert_allclose(-losses.detach(), np.load(folder / "model.npz")["target_logprob"], rtol=1e-5, atol=1e-5)
