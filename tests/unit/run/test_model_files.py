import pytest

from cpmbee_job.errors import ModelError
from cpmbee_job.run.model_files import check_model, indexed_weights, is_weights, weight_files

FILES = ["vocab.txt", "config.json", "pytorch_model.bin"]


def test_safetensors_are_preferred() -> None:
    assert weight_files([*FILES, "model-2.safetensors", "model-1.safetensors"]) == [
        "model-1.safetensors",
        "model-2.safetensors",
    ]
    assert weight_files(FILES) == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", True),
        ("pytorch_model-1.bin", True),
        ("optimizer.bin", False),
        ("a/model.safetensors", False),
    ],
)
def test_is_weights(name: str, expected: bool) -> None:
    assert is_weights(name) == expected


def test_complete_model_is_accepted() -> None:
    check_model("m", FILES)


@pytest.mark.parametrize(("missing", "message"), [(0, "no vocab.txt"), (1, "no config.json"), (2, "no weights")])
def test_missing_file_is_an_error(missing: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_model("m", FILES[:missing] + FILES[missing + 1 :])


def test_an_index_names_each_file_once() -> None:
    content = b'{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}'
    assert indexed_weights("i", content, {"1.safetensors", "2.safetensors"}) == ["1.safetensors", "2.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "i: not a safetensors index"),
        (b"{}", "i: not a safetensors index"),
        (b'{"weight_map": {}}', "it names no files"),
        (b'{"weight_map": ["a"]}', "i: not a safetensors index"),
        (b'{"weight_map": {"a": 1}}', "i: invalid file name 1"),
        (b'{"weight_map": {"a": "../b"}}', "i: invalid file name '../b'"),
        (b'{"weight_map": {"a": ".."}}', "i: invalid file name"),
        (b'{"weight_map": {"a": "none"}}', "i: names missing files: none"),
    ],
)
def test_an_invalid_index_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        indexed_weights("i", content, FILES)
