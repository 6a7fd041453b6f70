import pytest
import torch

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tiny_vocab) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture(scope="session")
def model(tokenizer) -> CpmBee:
    sizes = {"dim_model": 32, "num_heads": 4, "dim_head": 8, "dim_ff": 48, "num_layers": 2}
    model = CpmBee(ModelConfig(vocab_size=tokenizer.vocab_size, half=False, **sizes))
    init_weights(model, seed=3)
    return model
