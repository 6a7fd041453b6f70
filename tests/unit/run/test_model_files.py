import pytest

from cpmbee_job.errors import ModelError
from cpmbee_job.run.model_files import check_model, is_weights, weight_files

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
