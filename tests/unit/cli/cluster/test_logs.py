import json

from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from tests.cli_runner import run_cli


def test_logs_of_a_run_without_pods_come_from_the_store(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO [red]one\x1b[2J\n")
    done = run_cli("logs", run.url, "--timestamps")
    assert done.code == 0, done.err
    assert done.out == "2026-01-31T12:00:01.000Z worker-0 | INFO [red]one\n"


def test_json_is_one_list(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\nmore\n")
    lines = json.loads(run_cli("logs", run.url, "--json").out)
    assert [line["text"] for line in lines] == ["INFO one", "more"]
    assert lines[0] == {
        "time": "2026-01-31T12:00:01.000000000Z",
        "pod": "worker-0",
        "container": "pytorch",
        "text": "INFO one",
    }


def test_json_without_a_line_is_an_empty_list(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\n")
    assert json.loads(run_cli("logs", run.url, "--json", "--since", "1s").out) == []


def test_following_an_ended_run_shows_its_log_and_its_end(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\n")
    run.finish("failed", "out of memory", exit_code=100)
    done = run_cli("logs", run.url, "--follow")
    assert done.code == 0, "the log was shown; `wait` exits with the run's exit code"
    assert done.out == "worker-0 | INFO one\n"
    assert "failed, out of memory" in done.err


def test_an_unknown_container_is_a_usage_error(run: Run) -> None:
    done = run_cli("logs", run.url, "--container", "pytroch")
    assert done.code == 2
    assert "must be prepare or pytorch (got pytroch)" in done.err


def test_a_previous_log_cannot_be_followed(run: Run) -> None:
    assert run_cli("logs", run.url, "--previous", "--follow").code == 2
