"""Measure steps of LoRA on a GPU at the 10b shape, and the dense formulation in the same run (`make bench-gpu`).

Packed rows of 2048 tokens in CCPM's shape; weights are random and created on the device. If memory is short there are
fewer layers, which the table shows. `--rehearse` runs the same code at a tiny shape on the CPU; its figures mean
nothing.
"""

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.dense import dense_losses
from benchmarks.flex import both_forms
from benchmarks.measure import rendezvous, timed
from benchmarks.roofline import products_alone, shares
from benchmarks.step import Case, ccpm, one_long
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.lora import insert_lora
from cpmbee_job.model.memory import footprint, num_layer_parameters
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.plan import ITEMSIZES, USABLE, Precision
from cpmbee_job.spec.training import LoraSpec, TrainSpec
from cpmbee_job.train.engine.bmtrain_engine import BmtrainEngine, shard_model
from cpmbee_job.train.engine.build import DTYPES
from cpmbee_job.train.engine.torch_engine import TorchEngine

TEN_B = ModelConfig(vocab_size=86_583, dim_model=4096, num_heads=32, dim_head=128, dim_ff=10_240, num_layers=48)
TINY = replace(TEN_B, dim_model=64, num_heads=4, dim_head=16, dim_ff=160, num_layers=2)
LENGTH = 2048
LORA = LoraSpec()
TRAIN = TrainSpec(lr=1e-4, loss_scale=2.0**10)  # random weights overflow above about 2^12
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "V100": 125}
"""Dense peak of fp16 and bf16 in TFLOP/s, by words of the device's name; the first match counts."""
_ANSWER = 1000
"""Number of tokens in the answer of a long example."""
CASES: dict[str, Callable[[int], Case]] = {"ccpm": ccpm, "long": partial(one_long, _ANSWER)}
"""Batches of a number of packed rows, by their kind of examples."""


@dataclass(frozen=True)
class Setting:
    name: Literal["ours", "sharded", "dense"]
    """`sharded`: our engine in the layout of that name, in a world of one process."""
    rows: int
    recompute: str  # "none", "fit" (as few layers as fit), "all"
    precision: Precision = "fp16"
    examples: str = "ccpm"
    """`long`: each packed row is one example, with as many pairs of tokens as the dense formulation."""


SETTINGS = [
    Setting("ours", 5, "fit"),
    Setting("ours", 5, "all"),
    Setting("ours", 5, "fit", "bf16"),
    Setting("ours", 1, "none"),
    Setting("ours", 1, "all"),
    Setting("ours", 5, "all", examples="long"),
    Setting("ours", 1, "all", examples="long"),
    Setting("sharded", 5, "all"),
    Setting("sharded", 1, "all"),
    Setting("dense", 5, "all"),
    Setting("dense", 1, "all"),
]


@dataclass(frozen=True)
class Measured:
    setting: Setting
    layers: int
    recompute_layers: int
    first_step: float
    """Seconds since the start of building the model."""
    tokens_per_second: float
    utilization: float | None
    """Share of the device's peak, at 4 FLOP for each token and weight of the layers; None if the peak is unknown."""
    products_alone: float | None
    """The utilization of the matrix products of the layers alone, timed in the same run."""
    shares: dict[str, float] | None
    """Shares of a step's time, by kind of kernel (`roofline.shares`)."""
    peak_gib: float | None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="use a tiny shape on the CPU")
    parser.add_argument("--steps", type=int, default=10, help="number of timed steps, after two untimed ones")
    parser.add_argument("--examples", choices=CASES, help="only the settings with these packed rows")
    parser.add_argument("--attention", action="store_true", help="only one layer's attention, and FlexAttention")
    parser.add_argument("--out", type=Path, help="write a result file (JSON)")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; use --rehearse to rehearse on the CPU")
    device = torch.device("cpu" if options.rehearse else "cuda")
    run = {
        "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}",
        "date": datetime.date.today().isoformat(),
        "rehearsal": options.rehearse,
        "machine": machine(device),
        "length": LENGTH,
        "loss_scale": TRAIN.loss_scale,
    }
    results: list[dict[str, Any]] = []

    def add(words: str, result: dict[str, Any]) -> None:
        print(words, flush=True)
        results.append(result)
        if options.out is not None:  # after each setting: a later one may crash
            document = run | {"results": results}
            options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    if options.attention:
        rows, config, dtype = (1, TINY, torch.float32) if options.rehearse else (5, TEN_B, torch.float16)
        for examples, case in CASES.items():
            for measured in both_forms(case(rows), config, dtype, device, options.steps):
                said = {"rows": rows, "examples": examples, "dtype": str(dtype)} | asdict(measured)
                add(", ".join(f"{name} {value}" for name, value in said.items()), said)
        return
    settings = SETTINGS
    if options.rehearse:  # BMTrain requires a GPU
        settings = [replace(s, precision="fp32") for s in SETTINGS if s.rows == 1 and s.name != "sharded"]
    for setting in settings:
        if options.examples not in (None, setting.examples):
            continue
        try:
            result = measure(setting, TINY if options.rehearse else TEN_B, device, options.steps)
        except torch.OutOfMemoryError as error:
            print(f"{setting}: out of memory: {str(error).splitlines()[0]}", flush=True)
            continue
        finally:
            gc.collect()  # model and engine refer to each other
            if device.type == "cuda":
                torch.cuda.empty_cache()
        add(_words(result), asdict(result))


def measure(setting: Setting, config: ModelConfig, device: torch.device, num_steps: int) -> Measured:
    case = CASES[setting.examples](setting.rows)
    config, recompute_layers = fitted(setting, config, device)
    peak = peak_of(device)
    alone = products_alone(config, case.num_tokens, DTYPES[setting.precision], device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    dtype = DTYPES[setting.precision]
    if setting.name == "sharded":  # its blocks recompute their activations
        step = our_step(sharded_model(config, dtype, device), case, device, 0, BmtrainEngine)
    else:
        model = random_model(config, dtype, device)
        step = our_step(model, case, device, recompute_layers) if setting.name == "ours" else dense_step(model, case)
    step()
    first_step = time.perf_counter() - start
    step()
    # A step synchronizes with the device at its end. A step that overflows is repeated and takes twice as long.
    rate = case.num_tokens / median(timed(step) for _ in range(num_steps))
    flops = 4.0 * rate * sum(num_layer_parameters(config, layer) for layer in range(config.num_layers))
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return Measured(
        setting,
        config.num_layers,
        recompute_layers,
        first_step,
        rate,
        None if peak is None else flops / peak,
        None if peak is None else alone / peak,
        shares(step, device),
        peak_gib,
    )


def fitted(setting: Setting, config: ModelConfig, device: torch.device) -> tuple[ModelConfig, int]:
    """Return the largest configuration that fits, and the number of layers to recompute. The dense formulation also
    needs its bias and logits."""
    if device.type == "cpu":
        return config, {"none": 0, "fit": 1, "all": config.num_layers}[setting.recompute]
    room = USABLE * torch.cuda.mem_get_info(device)[0]
    itemsize = ITEMSIZES[setting.precision]
    if setting.name == "dense":
        columns = LENGTH * config.num_heads + config.vocab_size
        room -= setting.rows * LENGTH * columns * (2 * itemsize + 8)
    for num_layers in range(config.num_layers, 0, -1):
        smaller = replace(config, num_layers=num_layers)
        for again in {"none": [0], "all": [num_layers]}.get(setting.recompute, range(num_layers + 1)):
            need = footprint(
                smaller,
                rows=setting.rows,
                max_length=LENGTH,
                itemsize=itemsize,
                lora=(LORA.r, LORA.modules),
                recompute_layers=again,
            )
            if need.total <= room:
                return smaller, again
    raise torch.OutOfMemoryError("one layer does not fit into memory")


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CpmBee:
    """Draw weights of unit scale like `init_weights`, without a copy on the host."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = CpmBee(config)
    finally:
        torch.set_default_dtype(before)
    _draw(dict(model.named_parameters()))
    insert_lora(model, r=LORA.r, alpha=LORA.alpha, modules=LORA.modules)
    return model


def sharded_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CpmBee:
    os.environ |= rendezvous()  # for the communicator of BMTrain
    with torch.device("meta"):
        model = CpmBee(config)
    kept = shard_model(model, lora=LORA, seed=0, dtype=dtype, device=device)
    _draw({name: share.elements for name, share in kept.items()})
    return model


def _draw(weights: Mapping[str, Tensor]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_(1.0) if "layernorm" in name else weight.normal_()


def our_step(
    model: CpmBee,
    case: Case,
    device: torch.device,
    recompute_layers: int,
    kind: type[TorchEngine] = TorchEngine,
) -> Callable[[], float]:
    model.encoder.recompute_layers = recompute_layers
    engine = kind(model, TRAIN, device)
    inputs = ModelInputs.from_numpy(**vars(case.ours)).prefetched(device)
    return lambda: engine.step(1, [inputs], TRAIN.lr, wants_stop=lambda: False).loss


def dense_step(model: CpmBee, case: Case) -> Callable[[], float]:
    """Compute the whole bias and all logits with activation checkpointing, as the original does."""
    weights: Mapping[str, Tensor] = dict(model.named_parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=TRAIN.lr, weight_decay=TRAIN.weight_decay)

    def step() -> float:
        optimizer.zero_grad()
        loss = dense_losses(weights, model.config, case.dense, checkpointed=True).float().mean()
        (loss * TRAIN.loss_scale).backward()  # type: ignore[no-untyped-call]
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad /= TRAIN.loss_scale
        torch.nn.utils.clip_grad_norm_(trained, TRAIN.clip_grad)
        optimizer.step()
        return loss.item()

    return step


def peak_of(device: torch.device) -> float | None:
    if device.type == "cpu":
        return None
    words = set(re.split(r"[ -]", torch.cuda.get_device_name(device)))
    return next((1e12 * peak for name, peak in PEAKS.items() if words.issuperset(name.split())), None)


def machine(device: torch.device) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "device": "CPU"}
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
        with contextlib.suppress(OSError):
            version = Path("/proc/driver/nvidia/version").read_text(encoding="ascii")
            found["driver"] = re.findall(r"\d+\.[\d.]+", version)[0]
    return found


def _words(result: Measured) -> str:
    setting = result.setting
    rows = f"{setting.rows} x {LENGTH} of {setting.examples}"
    parts = [f"{setting.name}, {rows}, {setting.precision}, {result.layers} layers, "]
    parts[0] += f"{result.recompute_layers} recomputed: {result.tokens_per_second:,.0f} tokens/s"
    if result.utilization is not None:
        parts.append(f"{result.utilization:.1%} of the peak (matrix products alone {result.products_alone:.1%})")
    if result.peak_gib is not None:
        parts.append(f"at most {result.peak_gib:.1f} GiB")
    parts.append(f"first step after {result.first_step:.1f} s")
    if result.shares is not None:
        parts.append("of the time " + ", ".join(f"{kind} {share:.0%}" for kind, share in result.shares.items()))
    return ", ".join(parts)


if __name__ == "__main__":
    main()
