"""The launcher as the chart starts it, against a real object store and an API server."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.helm import SPEC_FOLDER, job_specs, pods, template
from tests.integration.jobs import Outcome, cli
from tests.integration.kubernetes_api import kubernetes_api
from tests.integration.submitting import jobs

pytestmark = pytest.mark.timeout(1800)  # the first one may have to build helm


@pytest.fixture
def spec(bucket: str, s3_storage: StorageSpec) -> dict[str, Any]:
    """A spec as on a laptop."""
    inputs = open_store(f"{bucket}/inputs", s3_storage)
    for name in ("vocab.txt", "config.json", "model.safetensors", "rows.jsonl"):
        inputs.put(name, b"x")
    return {
        "name": "weather",
        "model": f"{bucket}/inputs/",
        "data": {"train": f"{bucket}/inputs/rows.jsonl"},
        "output": f"{bucket}/runs/",
        "image": "example/train:1",
        "train": {"lr": 3.0e-4, "epochs": 2},
        "workers": {"count": 2, "cpu": "500m", "memory": "3Gi"},
        "cluster": {"namespace": "team", "labels": {"cost-center": "a-1"}},
        "storage": {
            "endpoint_url": s3_storage.endpoint_url,
            "launcher_endpoint_url": "http://127.0.0.1:9",
            "ca_bundle": "/home/me/ca.pem",
            "secret": "s3",
        },
    }


def launch(values: dict[str, Any], cluster: FakeCluster, folder: Path) -> Outcome:
    """Run the command of the only job's pod, as its first scheduled Job, with credentials in the environment."""
    made = template(values)
    text = job_specs(made)["rel-job-weather"]
    (pod,) = [pod for name, pod in pods(made).items() if not re.search("doctor|test", name)]
    (container,) = pod["spec"]["containers"]
    (folder / "spec").mkdir(exist_ok=True)
    (folder / "spec" / "job.yaml").write_text(text)
    env = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    arguments = [
        argument.replace(SPEC_FOLDER, str(folder / "spec")).replace("$(JOB_NAME)", "rel-weather-1")
        for argument in container["args"]
    ]
    with kubernetes_api(cluster, folder) as kubeconfig:
        return cli(*arguments, env={**env, "KUBECONFIG": str(kubeconfig)})


def test_the_pytorchjob_equals_that_of_render_on_a_laptop(
    spec: dict[str, Any], cluster: FakeCluster, tmp_path: Path
) -> None:
    done = launch({"jobs": {"weather": {"spec": spec, "wait": False}}}, cluster, tmp_path)
    assert done.code == 0, done.err
    (job,) = jobs(cluster)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    rendered = cli("render", tmp_path / "job.yaml", "--run-id", done.out.strip().partition("/")[2])
    assert rendered.code == 0, rendered.err
    manifest = yaml.safe_load(rendered.out)
    assert job["spec"] == manifest["spec"]
    assert {key: job["metadata"][key] for key in manifest["metadata"]} == manifest["metadata"]


def test_each_scheduled_job_starts_its_own_run(spec: dict[str, Any], cluster: FakeCluster, tmp_path: Path) -> None:
    once = launch({"jobs": {"weather": {"spec": spec, "wait": False}}}, cluster, tmp_path)
    scheduled = {"jobs": {"weather": {"spec": spec, "wait": False, "schedule": "@daily"}}}
    first, again = (launch(scheduled, cluster, tmp_path) for _ in range(2))
    assert first.code == 0, first.err
    assert first.out == again.out != once.out
    assert len(jobs(cluster)) == 2


def test_if_changed_adopts_the_active_run_of_an_earlier_scheduled_job(
    spec: dict[str, Any], cluster: FakeCluster, tmp_path: Path
) -> None:
    values = {"jobs": {"weather": {"spec": spec, "wait": False, "schedule": "@daily", "ifChanged": True}}}
    first, again = (launch(values, cluster, tmp_path) for _ in range(2))
    assert first.code == again.code == 0, again.err
    assert first.out == again.out
    assert len(jobs(cluster)) == 1


def test_an_invalid_spec_fails_the_launcher_with_the_error(
    spec: dict[str, Any], cluster: FakeCluster, tmp_path: Path
) -> None:
    spec["workers"] |= {"count": 3, "max": 2}
    done = launch({"jobs": {"weather": {"spec": spec}}}, cluster, tmp_path)
    assert done.code == 3
    assert "workers: must have min <= count <= max (got 3 <= 3 <= 2)" in done.err
    assert jobs(cluster) == []
