"""`logs` and `wait` as a user sees them, of runs in a folder of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from cpmbee_job import documents
from cpmbee_job.cli.cluster.follow import _News, seconds
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec

COMMAND = [sys.executable, "-m", "cpmbee_job.cli"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = f"name: ccpm\nmodel: s3://m/\ndata: {{train: s3://d/}}\noutput: file://{tmp_path}\n"
    return Run.start(parse_spec(text, source="job.yaml"), "abc")


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "KUBECONFIG": "/nowhere/kubeconfig"}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False)


def succeed(run: Run) -> None:
    for pointer in (keys.BEST, keys.LAST):
        run.store.put(pointer, documents.to_json({"step": 7, "prefix": "delta/7.1/"}))
    run.store.put("delta/7.1/manifest.json", b"{}")
    run.finish("succeeded", "all epochs done", steps=7)


# wait


def test_wait_ends_with_0_when_result_and_delta_are_there(run: Run) -> None:
    succeed(run)
    done = call("wait", run.url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["phase"] == "succeeded"
    assert "ccpm/abc: succeeded" in done.stderr


def test_wait_ends_with_the_runs_own_code(run: Run) -> None:
    run.finish("failed", "train.jsonl:7: no <ans>", exit_code=3)
    done = call("wait", run.url)
    assert done.returncode == 3
    assert "train.jsonl:7: no <ans>" in done.stderr
    assert "submit again" in done.stderr


def test_wait_for_a_cancelled_run_ends_with_103(run: Run) -> None:
    run.finish("cancelled", "by me")
    assert call("wait", run.url).returncode == 103


def test_wait_ends_with_101_after_its_timeout(run: Run) -> None:
    done = call("wait", run.url, "--timeout", "1s", "--json")
    assert done.returncode == 101
    assert json.loads(done.stdout)["ended"] is False
    assert "has not ended after 1 s" in done.stderr


def test_a_trouble_that_grows_older_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    news = _News()
    for age in ("4 s", "50 s", "2 min"):
        news.trouble(f"no result, and no recent heartbeat (the last was {age} ago)")
    assert capsys.readouterr().err.count("no recent heartbeat") == 1


def test_wait_for_no_run_ends_with_102(tmp_path: Path) -> None:
    assert call("wait", f"file://{tmp_path}/ccpm/nosuch").returncode == 102


def test_ctrl_c_ends_a_wait_with_130_and_says_that_the_run_goes_on(run: Run) -> None:
    waiting = subprocess.Popen([*COMMAND, "wait", run.url], stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    first = waiting.stderr.readline()
    assert "ccpm/abc" in first
    time.sleep(0.2)
    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "ccpm/abc goes on" in rest
    assert "Traceback" not in rest
    assert run.result() is None


# logs


def test_logs_of_a_run_without_pods_come_from_the_store(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO [red]one\x1b[2J\n")
    done = call("logs", run.url, "--timestamps")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2026-01-31T12:00:01.000Z worker-0 | INFO [red]one\n"


def test_logs_as_json_are_one_document(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\nmore\n")
    lines = json.loads(call("logs", run.url, "--json").stdout)
    assert [line["text"] for line in lines] == ["INFO one", "more"]
    assert lines[0] == {
        "time": "2026-01-31T12:00:01.000000000Z",
        "pod": "worker-0",
        "container": "pytorch",
        "text": "INFO one",
    }


def test_logs_since_the_end_are_an_empty_document(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\n")
    done = call("logs", run.url, "--json", "--since", "1s")
    assert json.loads(done.stdout) == []


def test_following_an_ended_run_shows_its_log_and_its_end(run: Run) -> None:
    run.store.put(keys.log_key("worker-0", 1), b"2026-01-31 12:00:01,000 INFO one\n")
    run.finish("failed", "out of memory", exit_code=100)
    done = call("logs", run.url, "--follow")
    assert done.returncode == 0, "the log could be shown; `wait` tells how it ended"
    assert done.stdout == "worker-0 | INFO one\n"
    assert "failed, out of memory" in done.stderr


def test_a_container_that_no_pod_has_is_a_usage_error(run: Run) -> None:
    assert call("logs", run.url, "--container", "pytroch").returncode == 2


def test_previous_can_not_be_followed(run: Run) -> None:
    assert call("logs", run.url, "--previous", "--follow").returncode == 2


# Words


@pytest.mark.parametrize(
    ("text", "length"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("7d", 604800)]
)
def test_lengths_of_time(text: str, length: float) -> None:
    assert seconds(text) == length


@pytest.mark.parametrize("text", ["", "h", "soon", "-1", "1y", "10m5h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)
