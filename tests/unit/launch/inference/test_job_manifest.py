"""The Job of `evaluate --on-cluster`. The golden manifests are reviewed by hand. To update them:

PYTHONPATH=. python tests/unit/launch/inference/test_job_manifest.py
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.inference.job_manifest import render_inference
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.launch.manifest.yaml_text import to_yaml
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.spec import JobSpec, load_spec
from tests.paths import GOLDEN

NAMES = ["gpu", "kueue", "minimal", "overlay"]
DIGEST = "0123456789abcdef" * 2
INPUTS = {
    "data.train": "s3://data/eval.jsonl",
    "data.eval": None,
    "lora.init_from": "s3://runs/ccpm/r1/delta/60.1/",
}


def asked(golden: str, **fields: Any) -> JobSpec:
    return load_spec(GOLDEN / golden / "job.yaml").with_fields(INPUTS | fields)


def rendered(name: str) -> Any:
    return render_inference(asked(name), "evaluate", ["--format=bee", "--batch-tokens=8192"], DIGEST)


def pod_of(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", NAMES)
def test_the_job_equals_the_golden_one(name: str) -> None:
    assert to_yaml(rendered(name)) == (GOLDEN / name / "evaluate.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_pod_is_a_worker_with_other_arguments(name: str) -> None:
    spec, job = asked(name), rendered(name)
    worker = render(spec, "r1")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    pod = pod_of(job)
    (main,), (trainer,) = pod["containers"], worker["containers"]
    assert main.pop("args")[:3] == ["-m", "cpmbee_job.cli", "evaluate"]
    trainer.pop("args")
    resources = main.pop("resources")
    assert resources["limits"].get("nvidia.com/gpu") == ("1" if spec.workers.gpus else None)
    trainer.pop("resources")
    assert [port["name"] for port in trainer.pop("ports")] == [naming.METRICS_PORT_NAME]  # it serves no metrics
    trainer["env"] = [one for one in trainer["env"] if one["name"] != contract.METRICS_PORT_ENV]
    assert main == trainer
    assert pod.pop("restartPolicy") == "Never"
    sidecars = [one for one in worker.pop("initContainers") if one["name"] != naming.PREPARE_CONTAINER]
    assert pod.pop("initContainers", []) == sidecars
    assert pod == worker | {"containers": pod["containers"]}
    assert contract.SPEC_ENV not in str(pod)


def test_predict_writes_its_rows_to_the_store() -> None:
    spec = asked("minimal", **{"lora.init_from": None, "model": "s3://m/$(HOME)/"})
    job = render_inference(spec, "predict", ["--beam-size=3"], DIGEST, "team")
    (main,) = pod_of(job)["containers"]
    assert main["args"] == [
        "-m", "cpmbee_job.cli", "predict", "--model", "s3://m/$$(HOME)/", "--beam-size=3",
        "--input", "s3://data/eval.jsonl", "--output", f"{keys.inference_url(spec.output, DIGEST)}/rows.jsonl",
    ]  # fmt: skip
    assert job["metadata"]["namespace"] == "team"
    assert job["metadata"]["labels"]["cpmbee-job/command"] == "predict"


def test_a_spec_that_cannot_run_on_a_cluster_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"data\.train: .*a local folder"):
        render_inference(asked("minimal", **{"data.train": "/rows.jsonl"}), "evaluate", [], DIGEST)
    with pytest.raises(SpecError, match="image: missing"):
        render_inference(asked("minimal", image=None), "evaluate", [], DIGEST)


@settings(deadline=None)
@given(name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True))
def test_names_of_jobs_and_pods_are_valid(name: str) -> None:
    job = render_inference(asked("minimal", name=name), "evaluate", [], DIGEST)
    assert len(f"{job['metadata']['name']}-x7k2p") <= 63
    assert job["metadata"]["name"].endswith("-evaluate-0123456789ab")
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())


if __name__ == "__main__":
    for golden in NAMES:
        (GOLDEN / golden / "evaluate.yaml").write_text(to_yaml(rendered(golden)))
