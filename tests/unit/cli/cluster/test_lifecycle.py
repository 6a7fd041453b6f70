import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from tests.cli_runner import run_cli


def succeed(run: Run) -> None:
    for pointer in (keys.BEST, keys.LAST):
        run.store.put(pointer, documents.to_json({"step": 7, "prefix": "delta/7.1/"}))
    run.store.put("delta/7.1/manifest.json", b"{}")
    run.finish("succeeded", "all epochs done", steps=7)


def test_the_exit_code_is_0_when_result_and_delta_are_stored(run: Run) -> None:
    succeed(run)
    done = run_cli("wait", run.url, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["phase"] == "succeeded"
    assert "ccpm/abc: succeeded" in done.err


def test_the_exit_code_of_a_failed_run_is_the_runs(run: Run) -> None:
    run.finish("failed", "train.jsonl:7: no <ans>", exit_code=3)
    done = run_cli("wait", run.url)
    assert done.code == 3
    assert "train.jsonl:7: no <ans>" in done.err
    assert "submit again" in done.err


def test_the_exit_code_of_a_cancelled_run_is_103(run: Run) -> None:
    run.finish("cancelled", "by me")
    assert run_cli("wait", run.url).code == 103


def test_the_exit_code_after_the_timeout_is_101(run: Run) -> None:
    done = run_cli("wait", run.url, "--timeout", "1s", "--json")
    assert done.code == 101
    assert json.loads(done.out)["ended"] is False
    assert "did not end within 1 s" in done.err


def test_the_exit_code_without_a_run_is_102(tmp_path: Path) -> None:
    assert run_cli("wait", f"file://{tmp_path}/ccpm/nosuch").code == 102


def test_ctrl_c_ends_the_command_with_130_and_not_the_run(run: Run) -> None:
    command = [sys.executable, "-m", "cpmbee_job.cli", "wait", run.url]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    first = waiting.stderr.readline()
    assert "ccpm/abc" in first
    time.sleep(0.2)
    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "ccpm/abc continues" in rest
    assert "Traceback" not in rest
    assert run.result() is None
