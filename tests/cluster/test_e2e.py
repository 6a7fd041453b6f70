"""The main workflow of a user on a real cluster; `make e2e`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import eventually, get
from tests.integration.jobs import assert_same_scores

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_job_is_submitted_followed_fetched_and_used(laptop: Laptop):
    submitted = laptop.submit("--follow", "--wait", "--timeout=10m")
    assert submitted.code == 0, submitted.err
    run = submitted.out.strip().splitlines()[-1]
    for word in ("worker-0", "worker-1", "prepare", "eval loss"):
        assert word in submitted.err
    status = laptop.status(run)
    assert status["phase"] == "succeeded"
    assert status["progress"] == 1

    again = laptop.submit()
    assert again.code == 0
    assert again.out.strip() == run
    assert "succeeded" in again.err

    logs = laptop.ask("logs", run)
    assert "worker-0" in logs.out
    assert "eval loss" in logs.out

    fetched = laptop.ask("fetch", run, "--to", laptop.folder / "fetched")
    assert fetched.code == 0, fetched.err
    result = json.loads((laptop.folder / "fetched" / "result.json").read_text())

    question = laptop.folder / "question.jsonl"
    row = {
        "input": "今天北京有雪。",
        "options": {f"<option_{i}>": w for i, w in enumerate("晴雨雪风")},
        "question": "天气怎么样？",
    }
    question.write_text(json.dumps(row | {"<ans>": ""}, ensure_ascii=False) + "\n")
    delta = next((laptop.folder / "fetched").rglob("delta.safetensors")).parent
    answer = laptop.run(
        "predict", "--model", laptop.folder / "model", "--delta", delta, "--input", question, "--max-length", 4
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["<ans>"]

    asked_on_the_cluster(laptop, run, delta, question)

    # the same spec on this machine, one process in place of two pods
    laptop.spec["output"] = str(laptop.folder / "runs")
    local = laptop.run("local", laptop.job, "--processes=1", "--json")
    assert local.code == 0, local.err
    scores = json.loads(local.out)["scores"]
    assert scores["eval_loss"] == pytest.approx(result["scores"]["eval_loss"], rel=1e-4)
    assert scores["best_step"] == result["scores"]["best_step"]


def asked_on_the_cluster(laptop: Laptop, run: str, delta: Path, question: Path) -> None:
    """Pods score and answer with the run's delta as this machine does with the fetched one."""
    rows = laptop.folder / "bee"
    assert laptop.run("reformat", "--input", laptop.folder / "raw", "--output", rows, "--format", "ccpm").code == 0
    data = ("--model", laptop.folder / "model", "--data", rows / "eval.jsonl", "--json")
    here = laptop.run("evaluate", *data, "--delta", delta)
    there = laptop.run("evaluate", *data, "--delta", laptop.status(run)["url"], "--on-cluster", "--timeout=10m")
    assert (here.code, there.code) == (0, 0), here.err + there.err
    assert re.search(r"-evaluate-\w+-\w+ \| examples", there.err)  # from the log of its pod
    scores = json.loads(there.out)
    assert_same_scores(scores, json.loads(here.out))
    again = laptop.run("evaluate", *data, "--delta", laptop.status(run)["url"], "--on-cluster")
    assert json.loads(again.out) == scores
    assert "already done" in again.err

    asked = ("--model", laptop.folder / "model", "--input", question, "--max-length", 4)
    here = laptop.run("predict", *asked, "--delta", delta)
    there = laptop.run("predict", *asked, "--delta", delta, "--on-cluster", "--job", laptop.job, "--timeout=10m")
    assert there.code == 0, there.err
    assert there.out == here.out

    rows = laptop.folder / "bad.jsonl"
    rows.write_text('{"input": "no answer"}\n')
    bad = laptop.run(
        "evaluate", "--model", laptop.folder / "model", "--data", rows, "--on-cluster", "--job", laptop.job
    )
    assert bad.code == 3, bad.err
    assert "bad.jsonl:1" in bad.err


def test_a_cancelled_run_keeps_its_objects_and_can_be_resumed(laptop: Laptop):
    laptop.spec["train"]["epochs"] = 12
    submitted = laptop.submit()
    assert submitted.code == 0, submitted.err
    run = submitted.out.strip()
    eventually(lambda: (laptop.status(run)["step"] or 0) >= 5, "it has done 5 steps")

    cancelled = laptop.ask("cancel", run)
    assert cancelled.code == 0, cancelled.err
    assert laptop.pods(run) == []
    status = laptop.status(run)
    assert status["phase"] == "cancelled"
    assert status["step"] >= 5
    assert laptop.ask("wait", run).code == 103
    assert laptop.submit().code == 5

    assert laptop.ask("resume", run, "--set", "train.epochs=3").code == 5
    resumed = laptop.ask("resume", run, "--wait", "--timeout=10m")
    assert resumed.code == 0, resumed.err
    lines = metrics(laptop, run)
    assert {line["attempt"] for line in lines} >= {1, 2}


def test_an_invalid_record_fails_the_job_with_its_file_and_line(laptop: Laptop):
    rows = laptop.folder / "raw" / "train.jsonl"
    lines = rows.read_text().splitlines()
    lines[30] = '{"target": "7", "input": "[翻译]没有候选"}'
    rows.write_text("\n".join(lines) + "\n")
    done = laptop.submit("--wait", "--timeout=10m")
    assert done.code == 3, done.err
    assert "train.jsonl:31" in done.err
    status = laptop.status(done.out.strip())
    assert status["phase"] == "failed"
    assert "train.jsonl:31" in status["reason"]
    eventually(lambda: has_failed(laptop.namespace), "the PyTorchJob has failed", seconds=180)


def has_failed(namespace: str) -> bool:
    """Return whether the operator marked the only PyTorchJob as failed, so that nothing restarts it."""
    (job,) = get("pytorchjobs", "-n", namespace)["items"]
    conditions = job.get("status", {}).get("conditions", [])
    return any(found["type"] == "Failed" and found["status"] == "True" for found in conditions)


def metrics(laptop: Laptop, run: str) -> list[dict[str, Any]]:
    """The run's metrics; there is one line for each step."""
    fetched = laptop.ask("fetch", run, "--to", laptop.folder / "metrics", "--what", "metrics")
    assert fetched.code == 0, fetched.err
    lines = [json.loads(line) for line in (laptop.folder / "metrics" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    return lines
