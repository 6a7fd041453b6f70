"""Checks of the doctor in an object store, here a folder."""

import json

import pytest

from cpmbee_job.errors import CpmbeeError, ModelError, NotFoundError, StoreError
from cpmbee_job.launch.checks.store_checks import check_data, check_model_folder, check_output
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.files import FileStore

SIZES = {"vocab_size": 3, "dim_model": 64, "num_heads": 2, "dim_head": 32, "dim_ff": 128, "num_layers": 2}


class CarelessStore(FileStore):
    """Ignores conditions."""

    def put(self, key, data, *, if_none_match=False, if_match=None):
        return super().put(key, data)


class ReadOnlyStore(FileStore):
    def put(self, key, data, *, if_none_match=False, if_match=None):
        raise StoreError(f"{key}: AccessDenied", hint="these credentials have no permission for this operation")


def model(folder, **files):
    store = FileStore(str(folder))
    contents = {"vocab.txt": b"<unk>\n", "config.json": json.dumps(SIZES).encode(), "model.safetensors": b"weights"}
    for name, data in (contents | files).items():
        if data is not None:
            store.put(name, data)
    return store


def states(results):
    return [(result.check, result.state) for result in results]


def test_checking_the_output_leaves_no_object(tmp_path):
    store = FileStore(str(tmp_path))
    assert states(check_output(store)) == [("output", "ok"), ("conditional put", "ok")]
    assert list(store.list()) == []


def test_a_store_that_ignores_conditions_is_a_problem(tmp_path):
    found = list(check_output(CarelessStore(str(tmp_path))))
    assert states(found) == [("output", "ok"), ("conditional put", "problem")]
    assert "If-None-Match and If-Match" in found[1].detail


def test_names_the_missing_permission(tmp_path):
    (result,) = check_output(ReadOnlyStore(str(tmp_path)))
    assert result.state == "problem"
    assert result.detail.startswith("cannot write: ")
    assert result.hint == "these credentials have no permission for this operation"


def test_describes_a_complete_model(tmp_path):
    (result,) = check_model_folder(model(tmp_path))
    assert result.state == "ok"
    assert "2 layers of width 64, 7 bytes of weights in 1 file" in result.detail


INDEX = {"metadata": {"total_size": 9}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"vocab.txt": None}, "no vocab.txt"),
        ({"vocab.txt": b""}, "vocab.txt is empty"),
        ({"config.json": b"{"}, "config.json: not valid JSON"),
        ({"config.json": b"{}"}, "missing vocab_size"),
        ({"model.safetensors": None}, "no weights"),
        ({"model.safetensors.index.json": json.dumps(INDEX).encode()}, "missing files: model-1.safetensors, model-2"),
        (
            {
                "model.safetensors.index.json": json.dumps(INDEX).encode(),
                "model-1.safetensors": b"1234",
                "model-2.safetensors": b"1234",
            },
            "weights are smaller than the 9 bytes",
        ),
    ],
)
def test_names_what_is_wrong_with_a_model(tmp_path, files, words):
    with pytest.raises(ModelError, match=words):
        list(check_model_folder(model(tmp_path, **files)))


def test_an_empty_model_folder_is_an_error(tmp_path):
    with pytest.raises(NotFoundError, match="no such folder, or no files in it"):
        list(check_model_folder(FileStore(str(tmp_path))))


def test_missing_data_is_an_error(tmp_path):
    with pytest.raises(CpmbeeError, match="no such object or folder"):
        list(check_data("data.train", f"{tmp_path}/none/", StorageSpec()))


def test_empty_data_is_a_problem(tmp_path):
    (tmp_path / "train.jsonl").touch()
    assert states(check_data("data.train", f"{tmp_path}/train.jsonl", StorageSpec())) == [("data.train", "problem")]


def test_measures_data(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    (result,) = check_data("data.train", f"{tmp_path}/", StorageSpec())
    assert result.detail.endswith("3 bytes in 1 file")
