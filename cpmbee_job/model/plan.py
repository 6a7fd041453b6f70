"""Choose how to execute a run's steps on the available devices, by arithmetic, the same on all ranks."""

from dataclasses import dataclass
from typing import Literal

from cpmbee_job.errors import SpecError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.memory import Footprint, footprint
from cpmbee_job.spec import JobSpec

Precision = Literal["fp32", "fp16", "bf16"]
ITEMSIZES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
USABLE = 0.92
"""Share of a GPU's memory to plan with; the rest is lost to fragmentation."""


@dataclass(frozen=True)
class Plan:
    engine: Literal["torch", "bmtrain"]
    layout: Literal["replicated", "sharded"]
    precision: Precision
    recompute_layers: int

    def __str__(self) -> str:
        again = f", {self.recompute_layers} layers recomputed" if self.recompute_layers else ""
        return f"{self.engine} in {self.precision}, weights {self.layout}{again}"


@dataclass(frozen=True)
class Devices:
    """The devices of all ranks. `memory`: bytes free on the GPU with the least; None on CPUs."""

    count: int
    memory: int | None
    has_bmtrain: bool


def choose(spec: JobSpec, config: ModelConfig, devices: Devices) -> Plan:
    """Return the fastest plan that fits into memory, or the smallest one if none fits. The spec's settings take
    precedence. Raises `SpecError` if the devices do not support them."""
    train, on_gpu = spec.train, devices.memory is not None
    precision = train.precision
    if precision == "auto":
        precision = "fp16" if on_gpu and config.half else "fp32"
    engine = train.engine
    if engine == "auto":
        engine = "bmtrain" if on_gpu and devices.has_bmtrain else "torch"
    if engine == "bmtrain" and not on_gpu:
        raise SpecError("train.engine: bmtrain requires a GPU, and there is none", hint="use auto or torch")
    if engine == "bmtrain" and not devices.has_bmtrain:
        raise SpecError("train.engine: bmtrain is not installed", hint="use auto or torch, or an image with bmtrain")
    if train.layout == "sharded" and engine != "bmtrain":
        raise SpecError("train.layout: sharded requires BMTrain and GPUs", hint="use auto")
    sharded = Plan(engine, "sharded", precision, config.num_layers)
    can_shard = engine == "bmtrain" and train.use_delta and not train.deterministic
    if train.layout == "sharded":
        return sharded
    if train.recompute_layers is not None:
        numbers = [min(train.recompute_layers, config.num_layers)]
    else:
        numbers = list(range(config.num_layers + 1)) if on_gpu else [0]
    candidates = [Plan(engine, "replicated", precision, number) for number in numbers]
    for plan in candidates:
        if devices.memory is None or needs(spec, config, plan, devices.count).total <= USABLE * devices.memory:
            return plan
    if train.layout == "auto" and can_shard and devices.count > 1:
        return sharded
    return candidates[-1]


def needs(spec: JobSpec, config: ModelConfig, plan: Plan, ranks: int) -> Footprint:
    """Return the memory that each of `ranks` GPUs needs under a plan."""
    return footprint(
        config,
        rows=1 if spec.train.deterministic else min(spec.train.batch_size, -(-spec.global_batch_size // ranks)),
        max_length=spec.train.max_length,
        itemsize=ITEMSIZES[plan.precision],
        lora=(spec.lora.r, spec.lora.modules) if spec.train.use_delta else None,
        shares=ranks if plan.layout == "sharded" else 1,
        recompute_layers=plan.recompute_layers,
    )
