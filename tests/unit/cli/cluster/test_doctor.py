import json
from pathlib import Path

from tests.cli_runner import run_cli

SPEC = "name: a\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n"


def test_the_exit_code_is_4_and_problems_have_hints(tmp_path: Path) -> None:
    done = run_cli("doctor", "--output", tmp_path / "runs")
    assert done.code == 4
    assert "problem       cluster: cannot connect to a Kubernetes cluster" in done.out
    assert "hint: set KUBECONFIG" in done.out
    assert "ok            conditional put: If-None-Match and If-Match work" in done.out
    assert "error: 1 of 4 checks failed" in done.err


def test_json_is_a_list_of_findings(tmp_path: Path) -> None:
    document = json.loads(run_cli("doctor", "--json", "--output", tmp_path / "runs").out)
    assert [(finding["check"], finding["state"]) for finding in document][1:3] == [
        ("cluster", "problem"),
        ("output", "ok"),
    ]
    assert all(finding.keys() == {"check", "state", "detail", "hint"} for finding in document)


def test_overrides_require_a_job() -> None:
    done = run_cli("doctor", "--set", "workers.gpus=1")
    assert done.code == 2
    assert "--set requires a JOB.yaml" in done.err


def test_an_invalid_spec_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\n")
    assert run_cli("doctor", tmp_path / "job.yaml").code == 3


def test_validate_server_requires_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(SPEC)
    done = run_cli("validate", tmp_path / "job.yaml", "--server")
    assert done.code == 4
    assert "cannot connect to a Kubernetes cluster" in done.err
