import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpmbee_job.errors import ModelError
from cpmbee_job.model.weights.model_folder import find_model, load_model
from cpmbee_job.model.weights.saving import save_pickled, save_weights
from tests.deltas import stored_digest

CPU = torch.device("cpu")


@pytest.fixture
def state(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture
def folder(tmp_path, config) -> Path:
    """A model folder without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return folder


def load(folder, dtype=torch.float32):
    return load_model(find_model(folder), dtype, CPU)


def check_equal(model, state):
    loaded = dict(model.named_parameters())
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in state.items())


def test_one_safetensors_file(folder, state):
    assert [path.name for path in save_weights(state, folder)] == ["model.safetensors"]
    check_equal(load(folder), state)


def test_shards_and_their_index(folder, state):
    paths = save_weights(state, folder, shard_bytes=10_000)
    assert paths[0].name == f"model-00001-of-{len(paths) - 1:05d}.safetensors"
    assert len(paths) > 3
    check_equal(load(folder), state)


def test_several_files_without_an_index(folder, state):
    names = list(state)
    save_file({n: state[n] for n in names[:5]}, folder / "a.safetensors")
    save_file({n: state[n] for n in names[5:]}, folder / "b.safetensors")
    check_equal(load(folder), state)


def test_the_original_file(folder, state):
    save_pickled(state, folder / "pytorch_model.bin")
    check_equal(load(folder), state)


def test_the_original_file_in_the_old_format(folder, state):
    torch.save(dict(state), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    check_equal(load(folder), state)


def test_an_original_file_that_cannot_be_read_by_ranges(folder, state):
    path = folder / "pytorch_model.bin"
    name = "encoder.layers.0.ffn.ffn.w_in.w_0.weight"
    torch.save({**state, name: state[name].T.contiguous().T}, path)  # its elements lie column by column
    check_equal(load(folder), state)
    save_pickled(state, path)
    with zipfile.ZipFile(path) as stored:
        records = [(record, stored.read(record)) for record in stored.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for record, data in records:
            packed.writestr(record, data)
    check_equal(load(folder), state)


def test_tensors_that_share_a_storage(folder, state):
    name, other = "encoder.layers.0.ffn.layernorm_before_ffn.weight", "encoder.output_layernorm.weight"
    both = torch.cat([state[name], state[other]])
    state |= {name: both[: len(state[name])], other: both[len(state[name]) :]}
    torch.save(dict(state), folder / "pytorch_model.bin")
    check_equal(load(folder), state)


def test_half_weights_become_fp32(folder, state):
    save_weights({name: tensor.half() for name, tensor in state.items()}, folder)
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check_equal(model, {name: tensor.half().float() for name, tensor in state.items()})


def test_the_hubs_prefix_and_tied_head(folder, state):
    hub = {f"cpmbee.{name}": tensor for name, tensor in state.items()}
    save_weights({**hub, "lm_head.weight": state["input_embedding.weight"].clone()}, folder)
    check_equal(load(folder), state)


def test_a_tied_head_in_the_original_file(folder, state):
    torch.save({**state, "lm_head.weight": state["input_embedding.weight"]}, folder / "pytorch_model.bin")
    check_equal(load(folder), state)


def test_an_untied_head_is_refused(folder, state):
    save_weights({**state, "lm_head.weight": state["input_embedding.weight"] + 1}, folder)
    with pytest.raises(ModelError, match=r"lm_head\.weight differs"):
        load(folder)


def test_loaded_weights_can_be_trained_without_touching_the_file(folder, state):
    save_weights(state, folder)
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load(folder).parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_missing_and_extra_keys_are_listed(folder, state):
    state["encoder.layers.5.ffn.extra.weight"] = state.pop("encoder.output_layernorm.weight")
    state["position_bias.relative_attention_bias"] = torch.zeros(4, 4)
    save_weights(state, folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert "missing:\n    encoder.output_layernorm.weight" in text
    assert "extra:\n    encoder.layers.5.ffn.extra.weight" in text
    assert "position_bias.relative_attention_bias is (4, 4), not (512, 4)" in text


@pytest.mark.parametrize(
    ("change", "hint"),
    [({"vocab_size": 51}, "vocab_size 51, the weights have 50"), ({"num_layers": 3}, "num_layers"),
     ({"num_layers": 1}, "num_layers"), ({"mask_modules": [[True, False], [False, False]]}, "mask_modules")],
)  # fmt: skip
def test_the_error_has_the_most_likely_cause(folder, state, config, change, hint):
    save_weights(state, folder)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **change}), encoding="utf-8")
    with pytest.raises(ModelError, match=hint):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, state, value):
    name = "encoder.layers.1.ffn.ffn.w_out.weight"
    state[name] = state[name].clone()
    state[name][3, 4] = value
    save_weights(state, folder)
    with pytest.raises(ModelError, match=name):
        load(folder)


def test_values_too_large_for_half_precision_are_named(folder, state):
    name = "encoder.output_layernorm.weight"
    save_weights({**state, name: state[name] * 1e6}, folder)
    with pytest.raises(ModelError, match=name):
        load(folder, torch.float16)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/cpmbee-bomb-went-off"),))


def test_a_file_that_would_run_code_is_refused(folder, state):
    torch.save({**state, "bomb": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code"):
        load(folder)
    assert not Path("/tmp/cpmbee-bomb-went-off").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_original_file_in_half_precision(folder, state, dtype):
    save_pickled({name: tensor.half() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    check_equal(load(folder, dtype), {name: tensor.half() for name, tensor in state.items()})


def test_a_file_that_changes_while_it_is_read(folder, state):
    save_weights(state, folder)
    files = find_model(folder)
    save_weights({name: tensor + 1 for name, tensor in state.items()}, folder)
    with pytest.raises(ModelError, match="changed while it was read"):
        load_model(files, torch.float32, CPU)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data + b"more", lambda data: b"\xff" * 8 + data[8:], lambda data: data[:8] + b"x" + data[9:]],
)
def test_a_header_that_does_not_match_the_file(folder, state, damage):
    (path,) = save_weights(state, folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors.*\n.*copy it again"):
        load(folder)


def test_unsupported_dtypes_are_refused(folder, state):
    (path,) = save_weights(state, folder)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4" ', 1))
    with pytest.raises(ModelError, match="has F4; weights must be floating point"):
        load(folder)


def test_the_library_reads_what_is_written(folder, state):
    mixed = {name: tensor.half() if "ffn" in name else tensor for name, tensor in state.items()}
    mixed |= {"odd": torch.rand(3).half(), "empty": torch.zeros(0, 5), "bits": torch.tensor([True, False, True])}
    paths = save_weights(mixed, folder, reversed(mixed.items()), shard_bytes=10_000)
    found = {name: tensor for path in paths[:-1] for name, tensor in load_file(path).items()}
    assert found.keys() == mixed.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in mixed.items())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_damaged_file_is_refused_with_a_message(folder, state, name, keep):
    path = folder / name
    save_weights(state, folder) if name.startswith("model") else save_pickled(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=name):
        load(folder)


def test_an_index_must_not_point_outside_its_folder(folder, state):
    save_weights(state, folder, shard_bytes=10_000)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}), encoding="utf-8")
    with pytest.raises(ModelError, match="invalid file name"):
        load(folder)


def test_a_missing_shard_is_named(folder, state):
    save_weights(state, folder, shard_bytes=10_000)[1].unlink()
    with pytest.raises(ModelError, match="model-00002-of"):
        load(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no weights"):
        find_model(folder)
    with pytest.raises(ModelError, match=r"config\.json"):
        find_model(tmp_path)


def test_the_digest_does_not_depend_on_the_file_format(folder, state):
    save_pickled(state, folder / "pytorch_model.bin")
    pickled = stored_digest(find_model(folder))
    save_weights(state, folder, shard_bytes=10_000)
    assert stored_digest(find_model(folder)) == pickled


def test_a_loaded_model_knows_its_digest(folder, state):
    save_weights(state, folder)
    assert load(folder).base_digest == stored_digest(find_model(folder))


def test_the_digest_changes_with_one_value(folder, state):
    save_weights(state, folder)
    before = stored_digest(find_model(folder))
    state["encoder.output_layernorm.weight"] = state["encoder.output_layernorm.weight"] + 1
    save_weights(state, folder)
    assert stored_digest(find_model(folder)) != before


def test_a_view_is_saved_without_its_base(state, tmp_path):
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    save_pickled({"a": whole[10:20]}, tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 5_000


def test_integer_weights_are_refused(folder, state):
    save_weights({name: tensor.int() for name, tensor in state.items()}, folder)
    with pytest.raises(ModelError, match=r"torch\.int32; weights must be floating point"):
        load(folder)
