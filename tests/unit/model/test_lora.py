import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.dense import dense_losses
from cpmbee_job.errors import ModelError
from cpmbee_job.model.lora import (  # fmt: skip
    Delta,
    apply_delta,
    insert_lora,
    load_delta,
    merged_layout,
    merged_weights,
    read_delta,
    save_delta_folder,
)
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from tests.deltas import delta_state
from tests.oracle import flatten_rows, random_rows
from tests.paths import ROOT

MODULES = ("project_q", "project_v")
PREFIX = "encoder.layers.0.self_att.self_attention.project_q.lora."


@pytest.fixture
def inputs() -> ModelInputs:
    return ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(0), 50, 1, 3)))


def losses_of(model, inputs):
    return model.target_losses(inputs, model(inputs))


def random_delta(model, r=4, alpha=8) -> Delta:
    """Insert LoRA into `model`, with weights that change its answers."""
    insert_lora(model, r, alpha, MODULES)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in delta_state(model).items()}
    delta = Delta(state, r, alpha, "random")
    load_delta(model, delta)
    return delta


def test_new_lora_does_not_change_the_output(model, inputs):
    before = losses_of(model, inputs).detach()
    insert_lora(model, 8, 16, MODULES)
    torch.testing.assert_close(losses_of(model, inputs), before)


def test_only_lora_is_trained(model, inputs):
    insert_lora(model, 8, 16, MODULES)
    losses_of(model, inputs).mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(delta_state(model))
    assert len(trained) == 2 * 2 * 2
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trained)


def test_keys_of_the_base_do_not_change(model):
    before = set(model.state_dict())
    insert_lora(model, 8, 16, MODULES)
    assert {name for name in model.state_dict() if ".lora." not in name} == before


def test_the_base_is_not_copied(model):
    addresses = {p.data_ptr() for p in model.parameters()}
    insert_lora(model, 8, 16, MODULES)
    assert {p.data_ptr() for p in model.parameters() if not p.requires_grad} == addresses


def test_outputs_equal_those_of_the_dense_formulation(model, config):
    rows = random_rows(np.random.default_rng(1), 50, 2, 3)
    random_delta(model, r=4, alpha=8)
    inputs = ModelInputs.from_numpy(**flatten_rows(rows))
    expected = dense_losses(dict(model.state_dict()), config, rows)
    torch.testing.assert_close(losses_of(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_first_weights_depend_on_the_seed_alone(config):
    states = []
    for seed in (1, 1, 2):
        model = CpmBee(config)
        init_weights(model, seed=0)
        torch.rand(3)
        insert_lora(model, 8, 16, MODULES, seed=seed)
        states.append(delta_state(model))
    assert torch.equal(states[0][PREFIX + "lora_A"], states[1][PREFIX + "lora_A"])
    assert not torch.equal(states[0][PREFIX + "lora_A"], states[2][PREFIX + "lora_A"])


def test_other_layers_can_have_lora(model, inputs):
    insert_lora(model, 2, 2, ["w_0", "attention_out"])
    losses_of(model, inputs).mean().backward()
    assert {name.split(".lora.")[0].rpartition(".")[2] for name in delta_state(model)} == {"w_0", "attention_out"}


def test_an_unknown_layer_is_refused_with_the_known_ones(model):
    with pytest.raises(ModelError, match="project_x") as caught:
        insert_lora(model, 8, 16, ["project_q", "project_x"])
    assert "attention_out, project_k, project_q, project_v, w_0, w_1, w_out" in str(caught.value)


def test_pruned_layers_are_skipped(config, inputs):
    model = CpmBee(replace(config, mask_modules=((True, False), (False, True))))
    init_weights(model, seed=0)
    insert_lora(model, 8, 16, MODULES)
    losses_of(model, inputs).mean().backward()
    assert all(name.startswith("encoder.layers.1.") for name in delta_state(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lora_weights_stay_fp32_in_a_half_precision_model(model, inputs, dtype):
    model.to(dtype)
    insert_lora(model, 8, 16, MODULES)
    losses_of(model, inputs).mean().backward()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_a_delta_folder_is_read_back(model, inputs, config, tmp_path):
    delta = random_delta(model, r=4, alpha=12)
    save_delta_folder(tmp_path, delta_state(model), {"r": 4, "alpha": 12, "scores": {}}, save_name="mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta.safetensors", "manifest.json", "mine.pt"]
    other = CpmBee(config)
    init_weights(other, seed=0)
    read = read_delta(tmp_path)
    assert (read.r, read.alpha, read.modules) == (4, 12, MODULES)
    apply_delta(other, read)
    assert torch.equal(losses_of(other, inputs), losses_of(model, inputs))
    assert set(delta.state) == set(torch.load(tmp_path / "mine.pt", weights_only=True))


def test_a_file_in_a_delta_folder_has_the_folders_alpha(model, tmp_path):
    random_delta(model, r=4, alpha=12)
    save_delta_folder(tmp_path, delta_state(model), {"r": 4, "alpha": 12}, save_name="mine")
    assert read_delta(tmp_path / "mine.pt").alpha == 12


def test_a_pt_file_has_its_rank_and_the_originals_alpha(model, tmp_path):
    random_delta(model, r=4, alpha=12)
    save_delta_folder(tmp_path, delta_state(model), {}, save_name="mine")
    assert (read_delta(tmp_path / "mine.pt").r, read_delta(tmp_path / "mine.pt").alpha) == (4, 16)


def merge(base, delta, **options):
    layout = merged_layout(base, delta, **options)
    merged = dict(merged_weights(base.items(), delta, layout))
    assert {name: (t.shape, t.dtype) for name, t in merged.items()} == {
        n: (t.shape, t.dtype) for n, t in layout.items()
    }
    return merged


def test_merged_weights_give_the_same_answers(model, inputs, config):
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    delta = random_delta(model)
    merged = CpmBee(config)
    merged.load_state_dict(merge(base, delta))
    torch.testing.assert_close(losses_of(merged, inputs), losses_of(model, inputs), atol=1e-5, rtol=1e-5)


def test_merging_keeps_half_precision_only_on_request(model):
    base = {name: p.detach().half() for name, p in model.named_parameters()}
    delta = random_delta(model)
    changed = {n for n, t in merge(base, delta).items() if t.dtype == torch.float32}
    assert changed == {n.split(".lora.")[0] + ".weight" for n in delta.state}
    assert {t.dtype for t in merge(base, delta, same_dtype=True).values()} == {torch.float16}


def test_incompatible_keys_are_listed(model):
    insert_lora(model, 4, 8, MODULES)
    state = delta_state(model)
    a = state.pop(PREFIX + "lora_A")
    state[PREFIX.replace("layers.0", "layers.7") + "lora_A"] = a
    state[PREFIX + "lora_B"] = torch.zeros(3, 4)
    with pytest.raises(ModelError) as caught:
        load_delta(model, Delta(state, 4, 8, "other.pt"))
    text = str(caught.value)
    assert "other.pt" in text
    assert f"missing {PREFIX}lora_A" in text
    assert "extra encoder.layers.7" in text
    assert f"{PREFIX}lora_B is (3, 4), not (32, 4)" in text


def test_merging_into_an_incompatible_model_is_refused(model):
    base = {name: p.detach()[:16] for name, p in model.named_parameters()}
    with pytest.raises(ModelError, match="incompatible"):
        merge(base, random_delta(model))


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({}, "not a LoRA delta"),
        ({"weight": torch.zeros(2, 2)}, "not a LoRA delta"),
        ({PREFIX + "lora_A": torch.zeros(2, 2)}, "lora_B"),
        (
            {PREFIX + "lora_A": torch.full((2, 2), torch.nan), PREFIX + "lora_B": torch.zeros(2, 2)},
            "NaN or infinite",
        ),
        ({PREFIX + "lora_A": "text"}, "plain dict"),
    ],
)
def test_a_file_that_is_not_a_delta_is_refused(tmp_path, state, word):
    path = tmp_path / "x.pt"
    torch.save(state, path)
    with pytest.raises(ModelError, match=word):
        read_delta(path)


def test_a_manifest_with_another_r_is_refused(model, tmp_path):
    insert_lora(model, 4, 8, MODULES)
    save_delta_folder(tmp_path, delta_state(model), {"r": 8, "alpha": 16}, save_name="mine")
    with pytest.raises(ModelError, match="the manifest has 8"):
        read_delta(tmp_path)


def test_an_empty_folder_is_not_a_delta(tmp_path):
    with pytest.raises(ModelError, match="contains no delta"):
        read_delta(tmp_path)


def test_opendelta_is_imported_quietly_and_without_a_graphical_toolkit():
    program = (
        "import sys; sys.modules['tkinter'] = None\n"
        "from cpmbee_job.model.config import ModelConfig\n"
        "from cpmbee_job.model.net.cpmbee import CpmBee\n"
        "from cpmbee_job.model.lora import insert_lora\n"
        "c = ModelConfig(vocab_size=5, dim_model=4, num_heads=1, dim_head=4, dim_ff=4, num_layers=1)\n"
        "insert_lora(CpmBee(c), 2, 2, ['project_q'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (torch.tensor(1.0), b), "incompatible shapes"),
        (lambda a, b: (a[0], b), "incompatible shapes"),
        (lambda a, b: (a, b[:, 0]), "incompatible shapes"),
        (lambda a, b: (a[:2], b), "incompatible shapes"),
        (lambda a, b: (a[:0], b[:, :0]), "incompatible shapes"),
        (lambda a, b: (a.int(), b), "floating point"),
    ],
)
def test_an_invalid_pair_of_matrices_is_refused(model, tmp_path, change, words):
    delta = random_delta(model)
    a, b = change(delta.state[PREFIX + "lora_A"], delta.state[PREFIX + "lora_B"])
    torch.save({**delta.state, PREFIX + "lora_A": a, PREFIX + "lora_B": b}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=words):
        read_delta(tmp_path / "x.pt")


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "true", '"16"', "0"])
def test_an_invalid_alpha_is_refused(model, tmp_path, alpha):
    save_delta_folder(tmp_path / "d", random_delta(model).state, {"r": 4, "alpha": 8}, save_name="x")
    (tmp_path / "d" / "manifest.json").write_text(f'{{"r": 4, "alpha": {alpha}}}')
    with pytest.raises(ModelError, match=r"greater than 0|not valid JSON"):
        read_delta(tmp_path / "d")


def test_several_pt_files_are_ambiguous(model, tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(dict(random_delta_state(model)), tmp_path / name)
    with pytest.raises(ModelError, match=r"2 \.pt files"):
        read_delta(tmp_path)


def random_delta_state(model):
    return delta_state(model) or random_delta(model).state


def test_merging_refuses_a_delta_with_a_missing_layer(model):
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    delta = random_delta(model)
    rest = {name: t for name, t in delta.state.items() if not name.startswith(PREFIX)}
    with pytest.raises(ModelError, match="missing " + PREFIX.replace(".", r"\.") + "lora_A"):
        merge(base, replace(delta, state=rest))


def test_merging_refuses_values_out_of_range_for_the_base_dtype(model):
    base = {name: p.detach().clone().half() for name, p in model.named_parameters()}
    delta = random_delta(model)
    huge = {name: t * 1e5 for name, t in delta.state.items()}
    with pytest.raises(ModelError, match="NaN or infinite"):
        merge(base, replace(delta, state=huge), same_dtype=True)


def test_a_delta_s_manifest_names_every_file_with_its_hash(model, tmp_path):
    save_delta_folder(tmp_path, random_delta(model).state, {"r": 4, "alpha": 8}, save_name="mine")
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert sorted(files) == ["delta.safetensors", "mine.pt"]
    data = (tmp_path / "mine.pt").read_bytes()
    assert files["mine.pt"] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
