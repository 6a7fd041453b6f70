"""A real HTTP server instead of the API server, and a cluster that retries without pauses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from kubernetes import config

from cpmbee_job.launch.kube.api import ApiCluster
from cpmbee_job.launch.kube.transport import Transport
from tests.unit.launch.api_server import ApiServer, api_server


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as script:
        yield script


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path, pauses: list[float]) -> ApiCluster:
    file = server.kubeconfig(tmp_path)
    transport = Transport(
        lambda: config.new_client_from_config(file), pause=pauses.append, timeout=urllib3.Timeout(connect=2, read=0.3)
    )
    return ApiCluster(transport, "team")
