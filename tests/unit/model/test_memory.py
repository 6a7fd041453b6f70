"""The arithmetic of memory, against a model's own tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.lora import insert_lora
from cpmbee_job.model.memory import footprint, num_layer_parameters, num_lora_parameters
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from tests.oracle import flatten_rows, random_rows

CONFIG = ModelConfig(vocab_size=50, dim_model=64, num_heads=4, dim_head=16, dim_ff=160, num_layers=3, half=False)
PRUNED = replace(CONFIG, mask_modules=((False, True), (True, False), (False, False)))
LORA = (8, ("project_q", "project_v", "w_0", "w_out"))


def kept_for_the_way_back(model: CpmBee, inputs: ModelInputs) -> int:
    """Bytes of all storages that a forward pass keeps, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(inputs)
    return sum(kept.values())


def model_of(config: ModelConfig, *, with_lora: bool = True) -> CpmBee:
    model = CpmBee(config)
    init_weights(model, seed=0)
    if with_lora:
        insert_lora(model, LORA[0], 16, LORA[1])
    return model


@pytest.mark.parametrize("config", [CONFIG, PRUNED])
def test_parameter_counts_match_the_model(config: ModelConfig) -> None:
    model = model_of(config)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert num_lora_parameters(config, *LORA) == counts[True]
    assert footprint(config, rows=1, max_length=64, itemsize=4, lora=LORA).base == 4 * counts[False]
    for number, layer in enumerate(model.encoder.layers):
        frozen = sum(p.numel() for p in layer.parameters() if not p.requires_grad)
        assert num_layer_parameters(config, number) == frozen


@pytest.mark.parametrize("with_lora", [True, False])
def test_calculated_activations_are_close_to_those_of_a_forward_pass(with_lora: bool) -> None:
    """What passes through on the way back, and biases, are counted besides. In fp32: in half precision a norm keeps an
    fp32 copy of its input on a CPU, but not on a GPU, of whose memory `tests/gpu` asks."""
    inputs = ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(0), 50, 4, 8)))
    tokens = len(inputs.ids)
    said = footprint(CONFIG, rows=1, max_length=tokens, itemsize=4, lora=LORA if with_lora else None).activations
    said -= tokens * 4 * (4 * CONFIG.dim_model + 3 * CONFIG.dim_ff)
    biases = sum(g.gather_BL.shape[0] * g.gather_BL.shape[1] ** 2 for g in inputs.groups)
    kept = kept_for_the_way_back(model_of(CONFIG, with_lora=with_lora), inputs) - biases * CONFIG.num_heads * 4
    if not with_lora:  # on a CPU a norm keeps what its weight is multiplied with, on a GPU not
        kept -= tokens * 4 * 2 * CONFIG.num_layers * CONFIG.dim_model
    assert 0.8 * kept <= said <= 1.25 * kept


def test_a_recomputed_layer_keeps_only_its_input() -> None:
    """One such layer exists whole while its turn is, so the first saves least."""
    sizes = [
        footprint(CONFIG, rows=2, max_length=64, itemsize=2, lora=LORA, recompute_layers=n).activations
        for n in range(4)
    ]
    assert sizes[0] - sizes[1] == -128 * 2 * CONFIG.dim_model
    assert sizes[1] - sizes[2] == sizes[2] - sizes[3] > 0


def test_sharding_splits_only_the_layers_of_the_base() -> None:
    ten_b = ModelConfig(vocab_size=86583, dim_model=4096, num_heads=32, dim_head=128, dim_ff=10240, num_layers=48)
    whole, share = (
        footprint(ten_b, rows=1, max_length=2048, itemsize=2, lora=(8, ("project_q", "project_v")), shares=n).base
        for n in (1, 8)
    )
    assert whole == pytest.approx(19.2e9, rel=0.01)
    assert share == pytest.approx(0.71e9 + 18.5e9 / 8 + 2 * 18.5e9 / 48, rel=0.02)


def test_the_default_lora_has_as_many_parameters_as_the_originals_delta() -> None:
    ten_b = ModelConfig(vocab_size=86583, dim_model=4096, num_heads=32, dim_head=128, dim_ff=10240, num_layers=48)
    assert num_lora_parameters(ten_b, 8, ("project_q", "project_v")) == 6_291_456
