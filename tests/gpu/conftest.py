"""Tests on a GPU: `make test-gpu`.

CPMBEE_TEST_DEVICE=cpu runs them on a CPU, where BMTrain's Python code uses gloo (`tests.bmtrain_on_cpu`). That shows
that the tests work, not that a GPU does.
"""

import os
import socket
from pathlib import Path

import pytest
import torch

from cpmbee_job.run.run import Run
from tests.gpu.golden import OPTION
from tests.integration.jobs import make_job
from tests.integration.worlds import new_run

DEVICE = os.environ.get("CPMBEE_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here; CPMBEE_TEST_DEVICE=cpu rehearses these tests")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # of BMTrain's communicator
    if DEVICE == "cpu":
        import tests.bmtrain_on_cpu  # noqa: F401
    return torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)


@pytest.fixture(scope="session")
def job(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def run(job: Path) -> Run:
    return new_run(job, "engines", OPTION)
