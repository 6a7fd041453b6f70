import json

import pytest
import torch

from cpmbee_job.errors import DamagedError, ModelError, NotFoundError
from cpmbee_job.model.locate import fetch_delta
from cpmbee_job.model.lora import insert_lora, save_delta_folder
from cpmbee_job.model.net.cpmbee import CpmBee
from tests.deltas import delta_state


@pytest.fixture
def run_folder(model, tmp_path):
    """A run with two deltas, the first of which is the best."""
    copy = CpmBee(model.config)
    insert_lora(copy, 4, 8, ["project_q"])
    for number, step in enumerate(("10.1", "20.1")):
        state = {name: torch.full_like(tensor, number) for name, tensor in delta_state(copy).items()}
        save_delta_folder(tmp_path / "delta" / step, state, {"r": 4, "alpha": 8}, save_name="mine")
    (tmp_path / "delta" / "BEST").write_text(json.dumps({"step": 10, "prefix": "delta/10.1/"}), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("place", ["", "delta/10.1", "delta/10.1/mine.pt", "delta/10.1/delta.safetensors"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_delta_is_found_by_every_kind_of_location(run_folder, place, scheme):
    delta = fetch_delta(f"{scheme}{run_folder}/{place}".rstrip("/"))
    assert all(not tensor.any() for tensor in delta.state.values())


def test_a_run_without_a_best_delta_yet_is_refused(run_folder):
    (run_folder / "delta" / "BEST").unlink()
    (run_folder / "spec.yaml").touch()
    with pytest.raises(ModelError, match="contains no delta"):
        fetch_delta(str(run_folder))


def test_an_invalid_pointer_is_refused(run_folder):
    (run_folder / "delta" / "BEST").write_text("{}", encoding="utf-8")
    with pytest.raises(DamagedError, match="BEST: prefix"):
        fetch_delta(str(run_folder))


@pytest.mark.parametrize("name", ["none", "none.pt"])
def test_a_missing_delta_is_named(tmp_path, name):
    with pytest.raises(NotFoundError, match=name):
        fetch_delta(str(tmp_path / name))


def test_all_weights_of_a_model_are_not_a_delta(model, tmp_path):
    save_delta_folder(tmp_path, dict(model.state_dict()), {"kind": "full"}, save_name="mine")
    with pytest.raises(ModelError, match="use this folder as the model"):
        fetch_delta(str(tmp_path))
