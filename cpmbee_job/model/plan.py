"""How a run's steps are executed on the devices that are there: decided once, by arithmetic, the same on all ranks."""

from dataclasses import dataclass
from typing import Literal

from cpmbee_job.errors import SpecError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.memory import Footprint, footprint
from cpmbee_job.spec import JobSpec

Precision = Literal["fp32", "fp16", "bf16"]
ITEMSIZES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
USABLE = 0.92
"""Share of a GPU's memory that is planned with: the allocator wastes some."""


@dataclass(frozen=True)
class Plan:
    engine: Literal["torch", "bmtrain"]
    layout: Literal["replicated", "sharded"]
    precision: Precision
    recompute_layers: int

    def __str__(self) -> str:
        again = f", {self.recompute_layers} layers computed again" if self.recompute_layers else ""
        return f"{self.engine} in {self.precision}, weights {self.layout}{again}"


@dataclass(frozen=True)
class Devices:
    """What is there. `memory`: bytes of the GPU that has the least free, None on CPUs."""

    count: int
    memory: int | None
    has_bmtrain: bool


def choose(spec: JobSpec, config: ModelConfig, devices: Devices) -> Plan:
    """The plan that computes least and fits; where none fits, the one that needs least memory. What the spec says
    goes before. Raises `SpecError` where it can't be had on such devices."""
    train, on_gpu = spec.train, devices.memory is not None
    precision = train.precision
    if precision == "auto":
        precision = "fp16" if on_gpu and config.half else "fp32"
    engine = train.engine
    if engine == "auto":
        engine = "bmtrain" if on_gpu and devices.has_bmtrain else "torch"
    if engine == "bmtrain" and not on_gpu:
        raise SpecError("train.engine: bmtrain runs on GPUs, and there is none here", hint="auto, or torch")
    if engine == "bmtrain" and not devices.has_bmtrain:
        raise SpecError("train.engine: bmtrain is not installed here", hint="auto, torch, or an image that has it")
    if train.layout == "sharded" and engine != "bmtrain":
        raise SpecError("train.layout: sharded takes BMTrain and GPUs, of which something lacks", hint="auto")
    sharded = Plan(engine, "sharded", precision, config.num_layers)
    may_be_sharded = engine == "bmtrain" and train.use_delta and not train.deterministic
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
    if train.layout == "auto" and may_be_sharded and devices.count > 1:
        return sharded
    return candidates[-1]


def needs(spec: JobSpec, config: ModelConfig, plan: Plan, ranks: int) -> Footprint:
    """Memory of one of so many GPUs under a plan."""
    return footprint(
        config,
        rows=1 if spec.train.deterministic else min(spec.train.batch_size, -(-spec.global_batch_size // ranks)),
        max_length=spec.train.max_length,
        itemsize=ITEMSIZES[plan.precision],
        lora=(spec.lora.r, spec.lora.modules) if spec.train.use_delta else None,
        shares=ranks if plan.layout == "sharded" else 1,
        recompute_layers=plan.recompute_layers,
    )
