"""Jobs whose steps do not fit into GPU memory are refused."""

import json
from pathlib import Path

import pytest

from cpmbee_job.errors import ClusterError, SpecError
from cpmbee_job.launch.checks.gpu_memory import check_gpu_memory, memory_of_nodes, memory_of_product, require_room
from cpmbee_job.launch.kube.protocol import NODES
from cpmbee_job.spec import JobSpec, parse_spec
from tests.fake_cluster import FakeCluster

SIZES = {"vocab_size": 86583, "dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10240, "num_layers": 48}
GIB = 2**30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    return tmp_path


def job(folder: Path, *overrides: str) -> JobSpec:
    text = f"name: a\nmodel: {folder}\ndata: {{train: t.jsonl}}\noutput: s3://o/\nworkers: {{gpus: 1}}\n"
    return parse_spec(text, source="job.yaml", overrides=overrides)


def cluster(product: str, mebibytes: int) -> FakeCluster:
    found = FakeCluster()
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": str(mebibytes)}
    found.put(NODES, {"metadata": {"name": "n", "labels": labels}})
    return found


@pytest.mark.parametrize(
    ("product", "size"),
    [
        ("NVIDIA-A100-SXM4-80GB", 80), ("NVIDIA-H100-80GB-HBM3", 80), ("Tesla-V100-SXM2-32GB", 32),
        ("NVIDIA-A10", None), ("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb", 40), (None, None),
    ],
)  # fmt: skip
def test_reads_the_size_in_a_product_name(product: str | None, size: int | None) -> None:
    assert memory_of_product(product) == (None if size is None else size * GIB)


def test_nodes_with_another_product_do_not_count() -> None:
    nodes = [*cluster("A", 16 << 10).list(NODES), *cluster("B", 80 << 10).list(NODES)]
    assert memory_of_nodes(nodes, "A") == 16 * GIB
    assert memory_of_nodes(nodes, None) == 80 * GIB
    assert memory_of_nodes(nodes, "C") is None


def test_the_10b_model_fits_an_a100_and_not_a_v100_of_16_gb(folder: Path) -> None:
    require_room(job(folder, "workers.gpu_product=NVIDIA-A100-SXM4-80GB", "train.batch_size=5"))
    require_room(job(folder, "workers.gpu_product=NVIDIA-A10"))  # its memory is unknown
    with pytest.raises(
        SpecError, match=r"workers\.gpu_product: a step requires about \d+\.\d GiB \(base 17\.\d, "
    ) as caught:
        require_room(job(folder, "workers.gpu_product=Tesla-V100-SXM2-16GB"))
    assert "14.7 of 16 GiB are usable" in caught.value.message


def test_sharded_over_more_gpus_it_fits_there_too(folder: Path) -> None:
    require_room(
        job(folder, "workers.gpu_product=Tesla-V100-SXM2-16GB", "workers.count=8", "train.global_batch_size=8")
    )


def test_an_explicit_layout_is_kept_even_if_another_would_fit(folder: Path) -> None:
    fields = ["workers.gpu_product=Tesla-V100-SXM2-16GB", "workers.count=8", "train.global_batch_size=8"]
    with pytest.raises(SpecError, match="weights replicated"):
        require_room(job(folder, *fields, "train.layout=replicated"))
    with pytest.raises(SpecError, match="trained "):
        require_room(job(folder, *fields, "train.use_delta=false"))


@pytest.mark.parametrize(("mebibytes", "state"), [(81920, "ok"), (16384, "problem")])
def test_the_doctor_reads_the_size_from_nodes(folder: Path, mebibytes: int, state: str) -> None:
    (result,) = check_gpu_memory(cluster("X", mebibytes), job(folder))
    assert result.state == state


def test_without_permission_to_read_nodes_the_product_name_counts(folder: Path) -> None:
    forbidden = FakeCluster()
    forbidden.refusals["list", NODES] = ClusterError(
        'nodes is forbidden: User "me" cannot list resource "nodes" in API group ""'
    )
    (unknown,) = check_gpu_memory(forbidden, job(folder))
    assert unknown.state == "warning"
    (known,) = check_gpu_memory(forbidden, job(folder, "workers.gpu_product=NVIDIA-A100-SXM4-80GB"))
    assert known.state == "ok"
