import pytest
import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(vocab_size=50, dim_model=32, num_heads=4, dim_head=8, dim_ff=48, num_layers=2, half=False)


@pytest.fixture
def model(config: ModelConfig) -> CpmBee:
    model = CpmBee(config)
    init_weights(model, seed=0)
    return model
