"""Promotion on a real object store with conditional puts."""

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.launch.lifecycle.promote import Promotion, promote
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import read_delta
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.urls import open_store
from tests.integration.jobs import cli

DIGEST = "aaaaaaaaaaaaaaaa"
MakeRun = Callable[[str, float], Run]


@pytest.fixture
def make_run(bucket: str, s3_storage: StorageSpec) -> MakeRun:
    """A run that has succeeded, with a delta of that loss."""

    def make(run_id: str, loss: float) -> Run:
        text = f"name: ccpm\nmodel: s3://m/\ndata: {{train: s3://d/}}\noutput: {bucket}/runs/\n"
        run = Run.begin(parse_spec(text, source="job.yaml"), run_id, s3_storage)
        data = f"tensors of {run_id}".encode()
        named = {"delta.safetensors": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        manifest = {"run": run.url, "scores": {"eval_loss": loss, "eval_digest": DIGEST}, "files": named}
        run.store.put("delta/7.1/delta.safetensors", data)
        run.store.put("delta/7.1/manifest.json", documents.to_json(manifest))
        run.store.put(keys.BEST, documents.to_json({"prefix": "delta/7.1/"}))
        run.finish("succeeded", "finished")
        return run

    return make


@pytest.mark.parametrize("empty", [True, False])
def test_the_best_of_eight_concurrent_promotions_stays(
    make_run: MakeRun, bucket: str, s3_storage: StorageSpec, empty: bool
) -> None:
    url = f"{bucket}/production"
    if not empty:
        promote(make_run("first", 1.0), open_store(url, s3_storage))
    runs = {run_id: make_run(run_id, loss) for run_id, loss in ((f"r{n}", 0.1 * (n + 1)) for n in range(8))}
    start = threading.Barrier(len(runs))

    def one(run: Run) -> Promotion:
        start.wait()
        return promote(run, open_store(url, s3_storage))

    with ThreadPoolExecutor(len(runs)) as pool:
        done = dict(zip(runs, pool.map(one, runs.values()), strict=True))
    target = open_store(url, s3_storage)
    delta = read_delta(target, json.loads(target.get(keys.BEST))["prefix"])
    assert delta.run == runs["r0"].url
    assert target.get(f"{delta.prefix}delta.safetensors") == b"tensors of r0"
    promoted = [promotion for promotion in done.values() if promotion.promoted]
    # a chain: each replaced a different one, so no writer overwrote a pointer that it had not read
    assert len({promotion.incumbent for promotion in promoted}) == len(promoted)
    for promotion in done.values():
        losses = promotion.verdict.candidate, promotion.verdict.incumbent
        assert losses[1] is None or losses[0] is None or promotion.promoted == (losses[0] < losses[1])


def test_concurrent_promotions_of_the_same_delta_promote_once(
    make_run: MakeRun, bucket: str, s3_storage: StorageSpec
) -> None:
    run, url = make_run("a", 0.5), f"{bucket}/production"
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: promote(run, open_store(url, s3_storage)), range(4)))
    assert sum(promotion.changed for promotion in done) == 1
    assert all(promotion.promoted for promotion in done)


def test_the_command_reports_both_scores_as_text_as_json_and_in_the_summary(
    make_run: MakeRun, bucket: str, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    better, worse = make_run("better", 0.25), make_run("worse", 0.5)
    storage = ("--endpoint-url", s3_storage.endpoint_url)
    to, nowhere = ("--to", f"{bucket}/production/"), {"KUBECONFIG": str(tmp_path / "nowhere")}
    done = cli("promote", better.url, *to, *storage, env=nowhere)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{bucket}/production/delta/")
    assert cli("promote", better.url, *to, *storage, env=nowhere).out == done.out

    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    refused = cli("promote", worse.url, *to, *storage, "--json", "--summary", summary, env=nowhere)
    assert refused.code == 5
    document = json.loads(refused.out)
    assert (document["promoted"], document["gain"]) == (False, -0.25)
    assert document["candidate"] == {"run": worse.url, "eval_loss": 0.5}
    assert document["incumbent"] == {"run": better.url, "eval_loss": 0.25}
    text = summary.read_text()
    assert text.startswith("before\n### not promoted")
    for output in (refused.err, text):
        assert "0.500000" in output
        assert "0.250000" in output


def test_runs_are_compared_side_by_side(make_run: MakeRun, s3_storage: StorageSpec, tmp_path: Path) -> None:
    first, second = make_run("a", 0.5), make_run("b", 0.25)
    second.store.put(keys.SPEC, second.spec.with_fields({"train.lr": 0.5}).to_yaml().encode())
    storage, nowhere = ("--endpoint-url", s3_storage.endpoint_url), {"KUBECONFIG": str(tmp_path / "nowhere")}
    done = cli("compare", first.url, second.url, *storage, env=nowhere)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert ["loss", "on", DIGEST, "0.500000", "0.250000"] in rows
    assert ["train.lr", str(first.spec.train.lr), "0.5"] in rows
    assert rows[0] == ["ccpm/a", "ccpm/b"]
    document = json.loads(cli("compare", first.url, second.url, *storage, "--json", env=nowhere).out)
    assert [difference["key"] for difference in document["spec"]] == ["train.lr"]
    assert document["first"]["state"] == "succeeded"
    assert document["second"]["scores"][DIGEST] == {"loss": 0.25, "source": "training"}
