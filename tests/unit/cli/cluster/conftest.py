"""Runs in a local folder, where no cluster is configured."""

from pathlib import Path

import pytest

from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = f"name: ccpm\nmodel: s3://m/\ndata: {{train: s3://d/}}\noutput: file://{tmp_path}\n"
    return Run.start(parse_spec(text, source="job.yaml"), "abc")
