"""Builds the engine of a run: chooses the plan for the devices of a world, loads the base model, inserts LoRA."""

from functools import partial
from importlib.util import find_spec

import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.locate import fetch_delta
from cpmbee_job.model.lora import insert_lora, load_delta
from cpmbee_job.model.plan import Devices, Plan, Precision, choose
from cpmbee_job.model.weights.model_folder import ModelFiles, load_model
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec
from cpmbee_job.train.engine.bmtrain_engine import BmtrainEngine, shard_model
from cpmbee_job.train.engine.deterministic_engine import DeterministicEngine
from cpmbee_job.train.engine.torch_engine import TorchEngine
from cpmbee_job.train.world import World

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def plan_for(spec: JobSpec, files: ModelFiles, world: World) -> Plan:
    """Choose the same plan on all ranks, even if their GPUs differ."""

    def own_device() -> tuple[int | None, bool]:
        free = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else None
        return free, find_spec("bmtrain") is not None

    devices = world.all_gather_object(own_device)
    least_free = min((free for free, _ in devices if free is not None), default=None)
    has_bmtrain = all(found for _, found in devices)
    return choose(spec, ModelConfig.from_file(files.config), Devices(world.size, least_free, has_bmtrain))


def build_engine(run: Run, files: ModelFiles, world: World, plan: Plan) -> TorchEngine:
    """Load the base, each rank reading a part of its files, and add LoRA or unfreeze all weights.

    Trained weights are the same on all ranks."""
    spec, lora, dtype = run.spec, run.spec.lora, DTYPES[plan.precision]
    kind = DeterministicEngine if spec.train.deterministic else TorchEngine
    if plan.layout == "sharded":
        kind = BmtrainEngine
        keep = partial(shard_model, lora=lora, seed=spec.train.seed, dtype=dtype, device=world.device)
        model = load_model(files, dtype, world.device, world, keep=keep)
    else:
        model = load_model(files, dtype, world.device, world)
        model.encoder.recompute_layers = plan.recompute_layers
        if spec.train.use_delta:
            insert_lora(model, r=lora.r, alpha=lora.alpha, modules=lora.modules, seed=spec.train.seed)
    if not spec.train.use_delta:
        model.requires_grad_(True)
    elif lora.init_from is not None:
        load_delta(model, fetch_delta(lora.init_from, run.storage))
    return kind(model, spec.train, world.device)
