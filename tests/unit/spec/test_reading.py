"""The job spec: valid and invalid values, and error messages."""

from pathlib import Path

import pytest

from cpmbee_job.errors import SpecError, UsageError
from cpmbee_job.spec import JobSpec, load_spec, parse_spec

MINIMAL = "name: a\nmodel: m/\ndata: {train: t.jsonl}\noutput: runs/\n"


def parse(text: str, *overrides: str) -> JobSpec:
    return parse_spec(text, source="job.yaml", overrides=overrides)


def test_minimal_spec_has_the_defaults() -> None:
    spec = parse(MINIMAL)
    assert (spec.lora.r, spec.lora.alpha, spec.lora.modules) == (8, 16, ("project_q", "project_v"))
    assert spec.global_batch_size == 1


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(MINIMAL)
    spec = load_spec(tmp_path / "job.yaml")
    assert spec.data.train == str(tmp_path / "t.jsonl")
    assert spec.model == str(tmp_path / "m") + "/"


@pytest.mark.parametrize("url", ["s3://bucket/x/", "file:///x"])
def test_urls_are_not_changed(tmp_path: Path, url: str) -> None:
    (tmp_path / "job.yaml").write_text(MINIMAL.replace("m/", url))
    assert load_spec(tmp_path / "job.yaml").model == url


def test_scientific_notation_is_a_number() -> None:
    assert parse(MINIMAL + "train: {lr: 1e-4}").train.lr == 1e-4


def test_overrides_reach_every_depth() -> None:
    spec = parse(MINIMAL, "train.lr=2e-4", "workers.count=3", "lora.modules=[project_q]", "data.eval=e.jsonl")
    assert (spec.train.lr, spec.workers.count, spec.lora.modules, spec.data.eval) == (
        2e-4,
        3,
        ("project_q",),
        "e.jsonl",
    )


def test_global_batch_size_is_derived_from_the_spec() -> None:
    assert parse(MINIMAL, "train.batch_size=5", "workers.count=4").global_batch_size == 20
    assert parse(MINIMAL, "train.batch_size=5", "workers.count=4", "train.global_batch_size=7").global_batch_size == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train: {batchsize: 3}", "train.batchsize: unknown key; did you mean train.batch_size?"),
        ("trian: {lr: 1}", "trian: unknown key; did you mean train?"),
        ("batch_size: 3", "batch_size: unknown key; did you mean train.batch_size?"),
        ("train: {epochs: many}", "train.epochs: Input should be a valid integer"),
        ("train: {epochs: 0}", "train.epochs: Input should be greater than or equal to 1 (got 0)"),
        ("train: {lr_decay_style: nom}", "train.lr_decay_style: Input should be 'noam'"),
        ("storage: {path_style: 3}", "storage.path_style"),
        ("lora: {modules: []}", "lora.modules"),
        ("workers: {count: 2, max: 1}", "must have min <= count <= max"),
        ("train: {engine: horovod}", "train.engine: Input should be 'auto', 'torch' or 'bmtrain'"),
        ("train: {layout: sharded, engine: torch}", "train: layout: sharded is incompatible with engine: torch"),
        ("train: {layout: sharded, use_delta: false}", "layout: sharded is incompatible with use_delta: false"),
        ("train: {layout: sharded, deterministic: true}", "layout: sharded is incompatible with deterministic: true"),
        ("name: Big_Name", "duplicate key"),
        ("train: [1, 2", "not valid YAML"),
        ("train: {lr: .nan}", "train.lr"),
        ("train: {seed: 2001-01-01}", "job.yaml"),
        ("storage: {endpoint_url: 'localhost:8333'}", "storage.endpoint_url: must have the form http://host:port"),
        ("cluster: {labels: {x y: a}}", "cluster.labels.x y: must have 1 to 63 letters"),
        ("cluster: {labels: {a/b: x y}}", "cluster.labels.a/b: the value of a label must have at most 63 letters"),
        ("cluster: {labels: {a: 天}}", "cluster.labels.a: the value of a label"),
        ("cluster: {labels: {a: true}}", "cluster.labels.a: Input should be a valid string (got true)"),
        ("cluster: {labels: {cpmbee-job/run: a}}", "cluster.labels.cpmbee-job/run: the launcher or the operator sets"),
        ("cluster: {labels: {kueue.x-k8s.io/queue-name: a}}", "set cluster.queue instead"),
        ("cluster: {env: {CPMBEE_X: a}}", "cluster.env.CPMBEE_X: the launcher or torchrun sets this variable"),
        ("cluster: {env: {1x: a}}", "cluster.env.1x: not a valid name of an environment variable"),
        ("cluster: {scheduling_policy: {minavailable: 1}}", "did you mean cluster.scheduling_policy.min_available?"),
        ("cluster: {image_pull_secrets: [a, B]}", "cluster.image_pull_secrets.1: must be the name"),
        ("cluster: {tolerations: [{seconds: 3}]}", "cluster.tolerations.0: unknown key seconds; valid keys: key,"),
        ("cluster: {affinity: {nodes: {}}}", "cluster.affinity: unknown key nodes; valid keys: nodeAffinity,"),
        ("cluster: {affinity: [a]}", "cluster.affinity: Input should be an object"),
        ("cluster: {pod_overlay: {replicas: 3}}", "cluster.pod_overlay: unknown key replicas; valid keys: metadata,"),
        ("cluster: {pod_overlay: {spec: [a]}}", "cluster.pod_overlay: metadata and spec must be mappings"),
        ("cluster: {pod_overlay: {spec: {restartPolicy: Never}}}", "spec.restartPolicy cannot be set"),
        ("cluster: {pod_overlay: {metadata: {name: x}}}", "metadata may contain only labels and annotations"),
        ("cluster: {pod_overlay: {metadata: {labels: null}}}", "only single labels and annotations can be removed"),
        ("cluster: {pod_overlay: {metadata: null}}", "only single labels and annotations can be removed"),
        ("cluster: {pod_overlay: {metadata: {labels: {cpmbee-job/name: x}}}}", "the launcher or the operator sets"),
        ("workers: {resources: {memory: 1Gi}}", "workers.resources: set workers.memory instead of memory"),
        ("workers: {resources: {nvidia.com/gpu: 1}}", "set workers.gpus instead of nvidia.com/gpu"),
        ("workers: {gpu_product: A100}", "gpu_product requires gpus"),
    ],
)
def test_error_names_the_dotted_key(change: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(MINIMAL + change)
    assert message in str(caught.value)


def test_secret_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SpecError, match=r"storage\.endpoint_url: a spec must not contain secrets") as caught:
        parse(MINIMAL + "storage: {endpoint_url: 'http://user:hunter2@host'}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "cluster",
    [
        "{env: {AWS_SECRET_ACCESS_KEY: hunter2}}",
        "{pod_overlay: {spec: {containers: [{name: pytorch, env: [{name: WANDB_API_KEY, value: hunter2}]}]}}}",
    ],
)
def test_secret_for_the_pods_is_refused_and_not_shown(cluster: str) -> None:
    with pytest.raises(SpecError, match=r"Secret|secretKeyRef") as caught:
        parse(f"{MINIMAL}cluster: {cluster}")
    assert "hunter2" not in str(caught.value)


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse("name: a\noutput: r/\ntrain: {epoch: 1}")
    assert {line.split(": ")[1] for line in str(caught.value).splitlines()} == {"model", "data", "train.epoch"}


@pytest.mark.parametrize("override", ["train.lr", "=3", "train..lr=1", "name.x=1"])
def test_invalid_override_is_refused(override: str) -> None:
    with pytest.raises((SpecError, UsageError), match="--set"):
        parse(MINIMAL, override)


@pytest.mark.parametrize(
    "override",
    [
        "output=gs://a/b", "output=s3:/x", "model=s3://", "data.train=http://x/y", "data.format=cpm",
        "data.format=a:b:c", "workers.memory=64Gb", "workers.cpu=0", "image=Reg/train:1",
        "image=a:b:C d", "workers.max=10000", "train.seed=99999999999999999999", "name=Job",
    ],
)  # fmt: skip
def test_invalid_values_are_refused(override: str) -> None:
    with pytest.raises(SpecError, match=override.partition("=")[0]):
        parse(MINIMAL, override)


@pytest.mark.parametrize(
    "override",
    [
        "output=s3://b1/",
        "output=./x y",
        "model=/a",
        "data.format=my.module:convert",
        "workers.memory=1.5Gi",
        "workers.cpu=500m",
        "workers={gpus: 1, gpu_product: NVIDIA-A100-SXM4-80GB, resources: {rdma/hca: 1, hugepages-2Mi: 4Gi}}",
        "image=reg.example:5000/a/b_c:1.0-x",
        "cluster.labels={example.com/cost-center: 4711, empty: ''}",
        "cluster.env={NCCL_IB_TC: 106, NCCL_SOCKET_IFNAME: eth0}",
        "cluster.tolerations=[{key: a, operator: Exists, tolerationSeconds: 60}]",
        "cluster.affinity={podAffinity: {}}",
    ],
)
def test_valid_values_are_accepted(override: str) -> None:
    parse(MINIMAL, override)


def test_yaml_round_trip() -> None:
    spec = parse(MINIMAL, "storage.path_style=true", "train.max_steps=3")
    assert parse(spec.to_yaml()) == spec


def test_missing_file_is_an_error() -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_spec(Path("nowhere.yaml"))


@pytest.mark.parametrize("name", ["uploads", "prepared"])
def test_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"^job.yaml: name: .*{name}"):
        parse(MINIMAL, f"name={name}")
