"""The PyTorchJob of a spec. The golden manifests are reviewed by hand. To update them after an intended change:

for job in tests/golden/*/job.yaml; do cpmbee-job render $job > ${job%job.yaml}pytorchjob.yaml; done
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.manifest.render import default_run_id, remarks, render
from cpmbee_job.launch.manifest.yaml_text import to_yaml
from cpmbee_job.spec import JobSpec, StorageSpec, load_spec, parse_spec
from tests.paths import GOLDEN as GOLDEN_FOLDER
from tests.paths import ROOT

GOLDEN = sorted(GOLDEN_FOLDER.glob("*/job.yaml"))
JOB = """\
name: a
image: registry.example/train:1
model: s3://m/
data: {train: s3://d/}
output: s3://o/
"""


def parse(*overrides: str) -> JobSpec:
    return parse_spec(JOB, source="job.yaml", overrides=overrides)


def rendered(*overrides: str) -> Any:
    return render(parse(*overrides), "r1")


def pod_of(manifest: Any) -> Any:
    return manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def env_of(manifest: Any, kind: str) -> dict[str, Any]:
    (container,) = pod_of(manifest)[kind]
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def everything(value: Any) -> list[Any]:
    """The value and all nested values."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for item in inner for found in everything(item))]


@pytest.mark.parametrize("job", GOLDEN, ids=lambda job: job.parent.name)
def test_the_manifest_equals_the_golden_one(job: Path) -> None:
    spec = load_spec(job)
    assert to_yaml(render(spec, default_run_id(spec))) == job.with_name("pytorchjob.yaml").read_text()


@pytest.mark.parametrize("job", GOLDEN, ids=lambda job: job.parent.name)
def test_fields_that_break_the_operator_are_not_rendered(job: Path) -> None:
    spec = load_spec(job)
    manifest = render(spec, default_run_id(spec))
    assert not [value for value in everything(manifest) if value in ([], None, "auto")]
    assert set(manifest["spec"]["pytorchReplicaSpecs"]) == {"Worker"}
    assert set(manifest["spec"]["elasticPolicy"]) == {
        "rdzvBackend", "minReplicas", "maxReplicas", "maxRestarts", "rdzvConf",
    }  # fmt: skip
    assert "restartPolicy" not in pod_of(manifest)
    assert "activeDeadlineSeconds" not in manifest["spec"]["runPolicy"]
    assert isinstance(manifest["spec"]["nprocPerNode"], str)


@settings(deadline=None)
@given(
    name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True),
    run_id=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", fullmatch=True),
)
def test_names_of_pods_and_services_are_valid(name: str, run_id: str) -> None:
    worker = f"{naming.job_name(name, run_id)}-worker-9998"
    assert len(worker) <= 63
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", worker)


def test_run_ids_that_are_no_valid_names_have_distinct_names() -> None:
    assert naming.job_name("a", "Run.1") != naming.job_name("a", "run.1")


def test_the_namespace_argument_overrides_the_spec() -> None:
    spec = parse("cluster.namespace=a")
    assert render(spec, "r1")["metadata"]["namespace"] == "a"
    assert render(spec, "r1", "b")["metadata"]["namespace"] == "b"
    assert "namespace" not in render(parse(), "r1")["metadata"]


def test_pods_get_exactly_the_spec() -> None:
    spec = parse("cluster.env={X: 'a$(POD_NAME)$$b'}")
    text = env_of(render(spec, "r1"), "initContainers")["CPMBEE_SPEC"]
    seen_by_the_pod = text.replace("$$", "$")  # as Kubernetes reads a doubled sign
    assert parse_spec(seen_by_the_pod, source="env") == spec
    assert re.search(r"(?<!\$)(\$\$)*\$\(", text) is None  # nothing that it would expand


def test_pods_get_the_storage_settings_without_local_paths() -> None:
    manifest = rendered("storage={endpoint_url: 'http://s3:1', ca_bundle: /home/me/ca.pem, sse_kms_key_id: 'a$(b)'}")
    storage = env_of(manifest, "containers")["CPMBEE_STORAGE"]
    assert "$" not in storage
    assert StorageSpec.model_validate_json(storage) == StorageSpec(endpoint_url="http://s3:1", sse_kms_key_id="a$(b)")


def test_pods_trust_the_certificates_of_the_config_map() -> None:
    manifest = rendered("storage={ca_config_map: ca, ca_bundle: /home/me/ca.pem}")
    storage = StorageSpec.model_validate_json(env_of(manifest, "containers")["CPMBEE_STORAGE"])
    (mount,) = [mount for mount in pod_of(manifest)["containers"][0]["volumeMounts"] if mount["name"] == "ca"]
    assert storage.ca_bundle == f"{mount['mountPath']}/ca.crt"


def test_only_the_training_container_requests_gpus() -> None:
    pod = pod_of(rendered("workers={gpus: 2, resources: {rdma/hca: 1}}"))
    assert pod["containers"][0]["resources"]["limits"].items() >= {"nvidia.com/gpu": "2", "rdma/hca": "1"}.items()
    assert set(pod["initContainers"][0]["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}


def test_only_the_training_container_serves_metrics_on_the_port_of_the_network_policy() -> None:
    manifest = rendered()
    assert "CPMBEE_METRICS_PORT" not in env_of(manifest, "initContainers")
    (container,) = pod_of(manifest)["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == env_of(manifest, "containers")["CPMBEE_METRICS_PORT"]
    policy = yaml.safe_load((ROOT / "k8s/base/network-policy.yaml").read_text())
    assert port["name"] in [
        open_port["port"] for rule in policy["spec"]["ingress"] for open_port in rule.get("ports", ())
    ]
    nowhere = "{name: pytorch, env: [{name: CPMBEE_METRICS_PORT, value: ''}]}"
    off = rendered(f"cluster.pod_overlay={{spec: {{containers: [{nowhere}]}}}}")
    assert env_of(off, "containers")["CPMBEE_METRICS_PORT"] == ""


def test_the_backoff_limit_grows_with_the_number_of_pods() -> None:
    assert rendered()["spec"]["runPolicy"]["backoffLimit"] == 3
    assert rendered("workers={count: 2, max: 8}")["spec"]["runPolicy"]["backoffLimit"] == 24
    assert rendered("cluster.backoff_limit=5", "workers.count=9")["spec"]["runPolicy"]["backoffLimit"] == 5


def test_min_available_is_the_number_of_pods_that_training_requires() -> None:
    policy = rendered("workers={count: 4, min: 2}", "cluster.scheduling_policy={queue: q}")["spec"]["runPolicy"]
    assert policy["schedulingPolicy"] == {"queue": "q", "minAvailable": 2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("image=null", "image: missing; required on a cluster"),
        ("model=/models/x", "model: /models/x is a local folder"),
        ("data.eval=eval.jsonl", "data.eval: eval.jsonl is a local folder"),
        ("lora.init_from=file:///x", "lora.init_from: file:///x"),
        ("output=file:///runs", "output: file:///runs"),
        ("cluster.pod_overlay={spec: {containers: null}}", "spec.containers: must not remove the container pytorch"),
        (
            "cluster.pod_overlay={spec: {containers: [worker]}}",
            "spec.containers: must not remove the container pytorch",
        ),
        ("cluster.pod_overlay={spec: null}", "spec.containers: must not remove the container pytorch"),
        ("cluster.pod_overlay={spec: {initContainers: null}}", "must not remove the container prepare"),
        (
            "cluster.pod_overlay={spec: {containers: [{name: proxy, image: x}]}}",
            "proxy would keep the pod running after pytorch",
        ),
    ],
)
def test_a_spec_that_cannot_run_on_a_cluster_is_rejected_with_the_key(override: str, words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        rendered(override)


@pytest.mark.parametrize("image", ["train", "reg:5000/train", "reg/train:latest"])
def test_an_image_without_a_version_gets_a_remark(image: str) -> None:
    (remark,) = remarks(parse(f"image={image}"))
    assert f"image: {image} does not name a version" in remark
    assert not remarks(parse(f"image={image}", "cluster.image_pull_policy=Always"))


@pytest.mark.parametrize("image", ["reg:5000/train:1", f"train@sha256:{'0' * 64}"])
def test_an_image_with_a_version_gets_none(image: str) -> None:
    assert not remarks(parse(f"image={image}"))


def test_render_prints_only_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    command = [sys.executable, "-m", "cpmbee_job.cli", "render", "job.yaml", "--run-id", "r1", "-n", "b"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout) == render(parse(), "r1", "b")


def test_validate_prints_the_remarks(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("train:1", "train:latest"))
    command = [sys.executable, "-m", "cpmbee_job.cli", "validate", "job.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert "warning: job.yaml: image: registry.example/train:latest does not name a version" in done.stderr
