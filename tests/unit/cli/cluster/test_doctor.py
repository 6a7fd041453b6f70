"""The verb `doctor`, and `validate --server`, where there is no cluster."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def run(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "cpmbee_job.cli", *arguments]
        environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none")}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return run


def test_what_is_missing_ends_with_4_and_says_how_to_mend_it(run, tmp_path):
    done = run("doctor", "--output", str(tmp_path / "runs"))
    assert done.returncode == 4
    assert "problem       cluster: no way to a Kubernetes cluster" in done.stdout
    assert "hint: set KUBECONFIG" in done.stdout
    assert "ok            conditional put: If-None-Match and If-Match work" in done.stdout
    assert "error: 1 of 4 checks" in done.stderr


def test_json_is_a_list_of_findings(run, tmp_path):
    document = json.loads(run("doctor", "--json", "--output", str(tmp_path / "runs")).stdout)
    assert [(finding["check"], finding["state"]) for finding in document][1:3] == [
        ("cluster", "problem"),
        ("output", "ok"),
    ]
    assert all(finding.keys() == {"check", "state", "detail", "hint"} for finding in document)


def test_overrides_need_a_job(run):
    assert run("doctor", "--set", "workers.gpus=1").returncode == 2


def test_a_spec_that_is_none_is_a_mistake_of_its_own(run, tmp_path):
    (tmp_path / "job.yaml").write_text("name: a\n")
    assert run("doctor", "job.yaml").returncode == 3


def test_a_server_that_can_not_be_asked_is_told(run, tmp_path):
    (tmp_path / "job.yaml").write_text("name: a\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n")
    done = run("validate", "job.yaml", "--server")
    assert done.returncode == 4
    assert "no way to a Kubernetes cluster" in done.stderr
