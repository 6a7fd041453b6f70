import json

from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run.run import Run
from tests.cli_runner import run_cli

REASON = "data.jsonl:7: no <ans>"


def test_the_exit_code_for_a_failed_run_is_0(run: Run) -> None:
    run.finish("failed", REASON, exit_code=3)
    done = run_cli("status", run.url)
    assert done.code == 0
    assert "failed" in done.out
    assert REASON in done.out


def test_json_is_one_document(run: Run) -> None:
    run.finish("failed", REASON, exit_code=3)
    assert RunStatus.model_validate_json(run_cli("status", run.url, "--json").out).exit_code == 3


def test_a_watch_ends_with_the_run(run: Run) -> None:
    run.finish("failed", REASON, exit_code=3)
    done = run_cli("status", run.url, "--watch")
    assert done.code == 0
    assert done.out.rstrip().endswith(f"failed, {REASON}")


def test_a_missing_run_is_reported_with_those_that_exist(run: Run) -> None:
    done = run_cli("status", f"{run.url}x")
    assert done.code == 102
    assert "existing: abc" in done.err


def test_watch_and_json_are_incompatible(run: Run) -> None:
    done = run_cli("status", run.url, "--watch", "--json")
    assert done.code == 2
    assert "incompatible" in done.err


def test_the_runs_of_an_output_are_listed_without_a_cluster(run: Run) -> None:
    run.finish("failed", "data.jsonl:7: no <ans>", exit_code=3)
    output = run.url.rsplit("/", 2)[0]
    done = run_cli("list", "--output", output)
    assert done.code == 0
    first, line = done.out.splitlines()
    assert first.split() == ["RUN", "PHASE", "STEP", "LOSS", "AGE", "REASON"]
    assert line.split()[:2] == ["ccpm/abc", "failed"]
    document = json.loads(run_cli("list", "--output", output, "--json").out)
    assert [entry["url"] for entry in document["runs"]] == [run.url]
