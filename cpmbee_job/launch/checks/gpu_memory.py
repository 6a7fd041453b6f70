"""Whether a job's steps fit into the memory of its GPUs, by arithmetic (`model.memory`) and what is known of them: the
node's labels, or the size in a product's name."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpmbee_job.errors import ClusterError, SpecError
from cpmbee_job.launch.checks.capacity import PRODUCT_LABEL
from cpmbee_job.launch.checks.findings import Finding, is_denied
from cpmbee_job.launch.checks.store_checks import model_config
from cpmbee_job.launch.kube.protocol import NODES, Cluster, Object
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.plan import USABLE, Devices, choose, needs
from cpmbee_job.run.model_files import CONFIG
from cpmbee_job.spec import JobSpec
from cpmbee_job.store.urls import open_store

MEMORY_LABEL = "nvidia.com/gpu.memory"
"""In MiB, as NVIDIA's feature discovery writes it."""
_HINT = "more GPUs or larger ones, or lower train.batch_size or train.max_length"


def memory_of_product(product: str | None) -> int | None:
    """Bytes, where a name like NVIDIA-A100-SXM4-80GB says them, or one that ends in MIG-3g.40gb."""
    found = re.findall(r"(?<![0-9A-Za-z])([0-9]+)GB(?![0-9A-Za-z])", product or "", re.IGNORECASE)
    return int(found[-1]) << 30 if found else None


def memory_of_nodes(nodes: Iterable[Object], product: str | None) -> int | None:
    """Bytes of the largest GPU, of this product if there is one named; None where no node says it."""
    labels = [node["metadata"].get("labels") or {} for node in nodes]
    sizes = [each.get(MEMORY_LABEL, "") for each in labels if product in (None, each.get(PRODUCT_LABEL))]
    return max((int(size) << 20 for size in sizes if size.isdecimal()), default=None)


def shortage(spec: JobSpec, config: ModelConfig, memory: int) -> str | None:
    """What a GPU of so many bytes lacks, in words; None where the steps fit."""
    count = (spec.workers.min or spec.workers.count) * spec.workers.gpus
    plan = choose(spec, config, Devices(count, memory, has_bmtrain=True))
    wanted = needs(spec, config, plan, count)
    if wanted.total <= memory * USABLE:
        return None
    return (
        f"a step takes about {wanted} on each of {count} GPUs, {plan}, and there are "
        f"{memory * USABLE / 2**30:.1f} of {memory / 2**30:.0f} GiB to use"
    )


def require_room(spec: JobSpec) -> None:
    """Raise `SpecError` where it is clear without a cluster or a store that the steps do not fit."""
    memory = memory_of_product(spec.workers.gpu_product)
    config = Path(spec.model) / CONFIG
    if memory is None or "://" in spec.model or not config.is_file():
        return
    if (words := shortage(spec, ModelConfig.from_file(config), memory)) is not None:
        raise SpecError(f"workers.gpu_product: {words}", hint=_HINT)


def check_gpu_memory(cluster: Cluster, spec: JobSpec) -> Iterator[Finding]:
    """Whether the steps fit into what the largest GPU of the cluster, or the product named, has."""
    product = spec.workers.gpu_product
    memory = memory_of_product(product)
    try:
        memory = memory_of_nodes(cluster.list(NODES), product) or memory
    except ClusterError as error:
        if not is_denied(error):
            raise
    if memory is None:
        yield Finding("GPU memory", "warning", f"no node's label {MEMORY_LABEL} says how much there is")
        return
    config = model_config(open_store(spec.model, spec.storage.seen_by_launcher()))
    if (words := shortage(spec, config, memory)) is not None:
        yield Finding("GPU memory", "problem", words, _HINT)
    else:
        yield Finding("GPU memory", "ok", f"a step fits into {memory / 2**30:.0f} GiB, by arithmetic")
