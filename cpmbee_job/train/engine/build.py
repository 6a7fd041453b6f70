"""The engine of a run, from the files of its base: what a plan says, made on the devices of a world."""

from functools import partial
from importlib.util import find_spec

import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.locate import fetch_delta
from cpmbee_job.model.lora import insert_lora, load_delta
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.plan import Devices, Plan, Precision, choose
from cpmbee_job.model.weights.model_folder import ModelFiles, load_model
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec
from cpmbee_job.train.engine.bmtrain_engine import BmtrainEngine, sharded
from cpmbee_job.train.engine.deterministic import DeterministicEngine
from cpmbee_job.train.engine.torch_engine import TorchEngine
from cpmbee_job.train.world import World

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def plan_for(spec: JobSpec, files: ModelFiles, world: World) -> Plan:
    """The same on all ranks, also where their GPUs differ."""

    def look() -> tuple[int | None, bool]:
        free = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else None
        return free, find_spec("bmtrain") is not None

    found = world.gather(look)
    least = min((free for free, _ in found if free is not None), default=None)
    devices = Devices(world.size, least, all(has_bmtrain for _, has_bmtrain in found))
    return choose(spec, ModelConfig.from_file(files.config), devices)


def build_engine(run: Run, files: ModelFiles, world: World, plan: Plan) -> TorchEngine:
    """Over the base, of which all ranks read a share each, with what is trained: LoRA beside a frozen base, or all
    weights. Trained weights are the same on all ranks."""
    spec = run.spec
    kind = DeterministicEngine if spec.train.deterministic else TorchEngine
    if plan.layout == "sharded":
        kind, model = BmtrainEngine, _sharded(spec, files, world, DTYPES[plan.precision])
    else:
        model = load_model(files, DTYPES[plan.precision], world.device, world)
        model.encoder.recompute_layers = plan.recompute_layers
        lora = spec.lora
        if spec.train.use_delta:
            insert_lora(model, r=lora.r, alpha=lora.alpha, modules=lora.modules, seed=spec.train.seed)
    if not spec.train.use_delta:
        model.requires_grad_(True)
    elif spec.lora.init_from is not None:
        load_delta(model, fetch_delta(spec.lora.init_from, run.storage))
    return kind(model, spec.train, world.device)


def _sharded(spec: JobSpec, files: ModelFiles, world: World, dtype: torch.dtype) -> CpmBee:
    keep = partial(sharded, lora=spec.lora, seed=spec.train.seed, dtype=dtype, device=world.device)
    return load_model(files, dtype, world.device, world, keep=keep)
