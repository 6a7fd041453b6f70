"""Which engine, layout, precision and recomputation are chosen, by what is there and what the spec says."""

from dataclasses import replace

import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.plan import USABLE, Devices, Plan, choose, needs
from cpmbee_job.spec import JobSpec, parse_spec

TEN_B = ModelConfig(vocab_size=86583, dim_model=4096, num_heads=32, dim_head=128, dim_ff=10240, num_layers=48)
GIB = 2**30
CPUS = Devices(2, None, has_bmtrain=True)
GPUS = Devices(8, 80 * GIB, has_bmtrain=True)
CARDS = Devices(8, 22 * GIB, has_bmtrain=True)


def job(*overrides: str) -> JobSpec:
    text = "name: a\nmodel: m/\ndata: {train: t.jsonl}\noutput: o/\n"
    fields = ("max_length=2048", "global_batch_size=64", *overrides)
    return parse_spec(text, source="job.yaml", overrides=[f"train.{field}" for field in fields])


def chosen(devices: Devices, *overrides: str, config: ModelConfig = TEN_B) -> Plan:
    return choose(job(*overrides), config, devices)


def test_cpus_compute_in_fp32_and_keep_everything() -> None:
    assert chosen(CPUS) == Plan("torch", "replicated", "fp32", 0)


def test_the_base_is_replicated_if_it_fits() -> None:
    assert chosen(GPUS) == Plan("bmtrain", "replicated", "fp16", 0)


def test_without_bmtrain_auto_is_torch_and_replicated() -> None:
    plan = chosen(replace(CARDS, memory=16 * GIB, has_bmtrain=False))
    assert (plan.engine, plan.layout, plan.recompute_layers) == ("torch", "replicated", 48)


def test_a_base_that_does_not_fit_is_sharded() -> None:
    assert chosen(replace(CARDS, memory=16 * GIB)) == Plan("bmtrain", "sharded", "fp16", 48)


def test_a_single_rank_does_not_shard() -> None:
    assert chosen(replace(CARDS, count=1, memory=16 * GIB)).layout == "replicated"


@pytest.mark.parametrize("batch_size", [2, 4, 5])
def test_as_few_layers_as_possible_are_recomputed(batch_size: int) -> None:
    spec = job(f"batch_size={batch_size}")
    plan = choose(spec, TEN_B, replace(GPUS, memory=40 * GIB))
    assert 0 < plan.recompute_layers < 48
    assert needs(spec, TEN_B, plan, 8).total <= USABLE * 40 * GIB
    fewer = replace(plan, recompute_layers=plan.recompute_layers - 1)
    assert needs(spec, TEN_B, fewer, 8).total > USABLE * 40 * GIB


def test_settings_of_the_spec_take_precedence() -> None:
    assert chosen(GPUS, "layout=sharded") == Plan("bmtrain", "sharded", "fp16", 48)
    assert chosen(replace(CARDS, memory=16 * GIB), "layout=replicated").layout == "replicated"
    assert chosen(GPUS, "engine=torch").engine == "torch"
    assert chosen(GPUS, "precision=bf16").precision == "bf16"
    assert chosen(CPUS, "precision=fp16").precision == "fp16"
    assert chosen(GPUS, "recompute_layers=7").recompute_layers == 7
    assert chosen(CPUS, "recompute_layers=99").recompute_layers == 48


def test_a_model_without_half_precision_is_trained_in_fp32() -> None:
    assert chosen(GPUS, config=replace(TEN_B, half=False, num_layers=2)).precision == "fp32"


@pytest.mark.parametrize("setting", ["use_delta=false", "deterministic=true"])
def test_full_and_deterministic_training_is_not_sharded(setting: str) -> None:
    assert chosen(replace(CARDS, memory=16 * GIB), setting).layout == "replicated"


@pytest.mark.parametrize(
    ("devices", "overrides", "words"),
    [
        (CPUS, ["engine=bmtrain"], r"train\.engine: bmtrain requires a GPU"),
        (CPUS, ["layout=sharded"], r"train\.layout: sharded requires"),
        (replace(GPUS, has_bmtrain=False), ["engine=bmtrain"], r"train\.engine: bmtrain is not installed"),
        (replace(GPUS, has_bmtrain=False), ["layout=sharded"], r"train\.layout: sharded requires"),
    ],
)
def test_unsupported_settings_are_an_error(devices: Devices, overrides: list[str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        chosen(devices, *overrides)
