"""Check by arithmetic (`model.plan`) that a training step fits into GPU memory.

The size comes from the nodes' labels, or from the GPU's product name.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.checks.check_result import CheckResult, list_permitted
from cpmbee_job.launch.checks.store_checks import model_config
from cpmbee_job.launch.kube.fields import object_at, text_at
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, NODES, Cluster, Object
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.plan import USABLE, Devices, choose, needs
from cpmbee_job.run.model_files import CONFIG
from cpmbee_job.spec import JobSpec
from cpmbee_job.store.urls import open_store

MEMORY_LABEL = "nvidia.com/gpu.memory"
"""In MiB, set by NVIDIA's GPU feature discovery."""
_HINT = "use more or larger GPUs, or lower train.batch_size or train.max_length"


def memory_of_product(product: str | None) -> int | None:
    """Return the bytes that a name like NVIDIA-A100-SXM4-80GB (or one ending in MIG-3g.40gb) contains, else None."""
    found = re.findall(r"(?<![0-9A-Za-z])([0-9]+)GB(?![0-9A-Za-z])", product or "", re.IGNORECASE)
    return int(found[-1]) << 30 if found else None


def memory_of_nodes(nodes: Iterable[Object], product: str | None) -> int | None:
    """Return the bytes of the largest GPU of this product (None: of any); None if no node has the label."""
    labels = [object_at(node, "metadata", "labels") for node in nodes]
    sizes = [text_at(each, MEMORY_LABEL) for each in labels if product in (None, each.get(GPU_PRODUCT_LABEL))]
    return max((int(size) << 20 for size in sizes if size.isdecimal()), default=None)


def shortage(spec: JobSpec, config: ModelConfig, memory: int) -> str | None:
    """Return why a step does not fit into GPUs of `memory` bytes, None if it does."""
    count = (spec.workers.min or spec.workers.count) * spec.workers.gpus
    plan = choose(spec, config, Devices(count, memory, has_bmtrain=True))
    required = needs(spec, config, plan, count)
    if required.total <= memory * USABLE:
        return None
    return (
        f"a step requires about {required} on each of {count} GPUs, {plan}, but "
        f"{memory * USABLE / 2**30:.1f} of {memory / 2**30:.0f} GiB are usable"
    )


def require_room(spec: JobSpec) -> None:
    """Raise `SpecError` if a step certainly does not fit: the product name and a local model folder are enough."""
    memory = memory_of_product(spec.workers.gpu_product)
    config = Path(spec.model) / CONFIG
    if memory is None or "://" in spec.model or not config.is_file():
        return
    if (why := shortage(spec, ModelConfig.from_file(config), memory)) is not None:
        raise SpecError(f"workers.gpu_product: {why}", hint=_HINT)


def check_gpu_memory(cluster: Cluster, spec: JobSpec) -> Iterator[CheckResult]:
    """Check that a step fits into the product that the spec names, or else into the largest GPU of the cluster."""
    product = spec.workers.gpu_product
    nodes, _ = list_permitted(cluster, NODES)
    memory = memory_of_nodes(nodes, product) or memory_of_product(product)
    if memory is None:
        yield CheckResult("GPU memory", "warning", f"unknown: no node has the label {MEMORY_LABEL}")
        return
    config = model_config(open_store(spec.model, spec.storage.seen_by_launcher()))
    if (why := shortage(spec, config, memory)) is not None:
        yield CheckResult("GPU memory", "problem", why, _HINT)
    else:
        yield CheckResult("GPU memory", "ok", f"a step fits into {memory / 2**30:.0f} GiB (computed)")
