import json

import pytest

from cpmbee_job.errors import ModelError
from cpmbee_job.model.config import ModelConfig

ORIGINAL = {"vocab_size": 50, "dim_model": 32, "num_heads": 4, "dim_head": 8, "dim_ff": 48, "num_layers": 2}
HUB = {
    "vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48, "num_hidden_layers": 2,
    "model_type": "cpmbee", "distance_scale": 16, "torch_dtype": "float16", "use_cache": True,
}  # fmt: skip


def test_both_dialects_name_the_same_model():
    original, hub = ModelConfig.from_dict(ORIGINAL), ModelConfig.from_dict(HUB)
    assert (original.dialect, hub.dialect) == ("original", "hub")
    assert original.to_dict() == hub.to_dict()


def test_written_config_is_read_back(tmp_path):
    config = ModelConfig.from_dict({**HUB, "mask_modules": [[False, True], [True, False]]})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert ModelConfig.from_file(path).to_dict() == config.to_dict()
    assert ModelConfig.from_file(path).blocks == ((True, False), (False, True))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dim_ff": None}, "missing dim_ff"),
        ({"dim_model": "32"}, "dim_model"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": True}, "num_heads"),
        ({"hidden_size": 64}, "hidden_size is 64, but dim_model is 32"),
        ({"mask_modules": [[False, True]]}, "mask_modules"),
        ({"mask_modules": [[False], [True]]}, "mask_modules"),
        ({"int4": True}, "int4"),
        ({"position_bias_num_segment_buckets": 32}, "position_bias_num_segment_buckets"),
        ({"position_bias_num_buckets": 2}, "position_bias_num_buckets"),
        ({"dropout_p": 1.5}, "dropout_p"),
        ({"eps": "small"}, "eps"),
        ({"half": 1}, "half"),
    ],
)
def test_an_invalid_config_is_refused_with_the_key(change, word):
    with pytest.raises(ModelError, match=r"here\.json") as caught:
        ModelConfig.from_dict({**ORIGINAL, **change}, source="here.json")
    assert word in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_file_that_is_not_a_config_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        ModelConfig.from_file(tmp_path / "config.json")
