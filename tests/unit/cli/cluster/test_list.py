import json

from cpmbee_job.run.run import Run
from tests.cli_runner import run_cli


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
