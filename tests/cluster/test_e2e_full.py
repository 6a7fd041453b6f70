"""Failures on a real cluster and their messages; `make e2e-full`."""

import json

import pytest

from tests.cluster import s3
from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import apply, eventually, get
from tests.cluster.test_e2e import has_failed

pytestmark = [pytest.mark.e2e_full, pytest.mark.timeout(900)]


def problem(laptop: Laptop, run: str, *words: str) -> str:
    """Return the first problem in `status` that contains these words."""

    def said() -> str | None:
        return next((p for p in laptop.status(run)["problems"] if all(word in p for word in words)), None)

    return eventually(said, f"status names {words}", seconds=240) or ""


def test_an_image_that_cannot_be_pulled_is_reported(laptop: Laptop):
    laptop.spec["image"] = "registry.invalid/cpmbee-job/train:0.0.0"
    run = laptop.submit().out.strip()
    assert "registry.invalid/cpmbee-job/train:0.0.0" in problem(laptop, run, "image")
    waited = laptop.ask("wait", run, "--timeout=5")
    assert waited.code == 101
    assert "registry.invalid/cpmbee-job/train:0.0.0" in waited.err


def test_an_unschedulable_request_is_reported_with_the_resource(laptop: Laptop):
    laptop.spec["workers"] |= {"gpus": 8, "cpu": "900"}
    run = laptop.submit().out.strip()
    said = problem(laptop, run, "cpu")
    assert "nvidia.com/gpu" in said
    assert laptop.ask("wait", run, "--timeout=5").code == 101
    assert laptop.ask("cancel", run).code == 0


def test_a_worker_without_enough_memory_fails_the_run_with_a_message(laptop: Laptop):
    # far less than torch takes: with nearly enough the kernel reclaims pages for minutes before it kills
    laptop.spec["workers"] |= {"count": 1, "memory": "300Mi"}
    done = laptop.submit("--wait", "--timeout=12m")
    assert done.code == 100, done.err
    assert "out of memory" in done.err
    assert "workers.memory" in done.err


def test_a_missing_secret_is_reported(laptop: Laptop):
    laptop.spec["storage"]["secret"] = "no-such-secret"
    run = laptop.submit().out.strip()
    assert "no-such-secret" in problem(laptop, run, "no-such-secret")


def test_read_only_credentials_are_reported_with_the_message_of_the_store(laptop: Laptop):
    secret = {"name": "reader", "namespace": laptop.namespace}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": s3.LIMITED})
    laptop.spec["storage"]["secret"] = "reader"
    run = laptop.submit().out.strip()
    said = problem(laptop, run, "prepare")
    assert "AccessDenied" in said or "403" in said
    for secret_value in (*s3.LIMITED.values(), *s3.CREDENTIALS.values()):
        assert secret_value not in laptop.ask("logs", run).out or "reader" in secret_value


def test_a_spec_rejected_by_the_webhook_is_refused_before_any_write(laptop: Laptop):
    laptop.spec["cluster"]["tolerations"] = [{"key": "gpu", "operator": "Sometimes"}]
    checked = laptop.run("validate", laptop.job, "--server")
    assert checked.code == 3
    assert "cluster.tolerations.0.operator" in checked.err
    laptop.spec["cluster"] |= {
        "tolerations": [],
        "pod_overlay": {"spec": {"containers": [{"name": "pytorch", "imagee": "x"}]}},
    }
    refused = laptop.submit()
    assert refused.code == 3
    assert "imagee" in refused.err
    assert get("pytorchjobs", "-n", laptop.namespace)["items"] == []
    listed = laptop.run("list", "--output", laptop.spec["output"], "--json", "-n", laptop.namespace)
    assert json.loads(listed.out)["runs"] == []


def test_a_quota_that_is_too_small_is_reported(laptop: Laptop):
    quota = {"name": "small", "namespace": laptop.namespace}
    apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": quota, "spec": {"hard": {"limits.memory": "4Gi"}}})
    run = laptop.submit().out.strip()
    assert "limits.memory" in problem(laptop, run, "quota")
    assert not has_failed(laptop.namespace)
