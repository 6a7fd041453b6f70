"""The engine `bmtrain` with a sharded base: each rank holds a shard of every layer, and BMTrain gathers the weights of
one layer at a time, in the forward and the backward pass (ZeRO-3; the frozen base has no gradients).

Trained parameters stay outside BMTrain, replicated, so all-reduce, clipping, update and checkpoints are those of
`TorchEngine`, bit for bit. Written against BMTrain 1.0.1. Tested on one GPU (`tests/gpu`), and with several processes
by running its Python code over gloo (`tests/bmtrain_on_cpu.py`); not tested on several GPUs.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from cpmbee_job.model.lora import LowRank, insert_lora
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.model_folder import Kept, keep_whole
from cpmbee_job.spec.training import LoraSpec
from cpmbee_job.train.engine.torch_engine import TorchEngine


class BmtrainEngine(TorchEngine):
    """`TorchEngine` for a model that `shard_model` has sharded."""

    skips_padding = False  # all ranks must gather every layer equally often


def shard_model(
    model: CpmBee, *, lora: LoraSpec, seed: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Kept]:
    """Insert LoRA into a model on the device `meta`, then shard its layers over all ranks.

    Returns this rank's shards by name, still to be filled. LoRA comes first: BMTrain would keep a gradient buffer for
    every parameter that requires gradients when it is wrapped, even if it is frozen later.
    """
    import bmtrain

    if not bmtrain.init.is_initialized():
        _init_bmtrain(bmtrain, seed)
    insert_lora(model, r=lora.r, alpha=lora.alpha, modules=lora.modules, seed=seed, device=device)
    blocks: list[nn.Module] = []
    kept: dict[str, Kept] = {}
    for number, layer in enumerate(model.encoder.layers):
        block, shards = _shard_layer(bmtrain, layer, dtype)
        blocks.append(block)
        kept |= {f"encoder.layers.{number}.{name}": shard for name, shard in shards.items()}
    model.encoder.layers = bmtrain.TransformerBlockList(blocks)
    # Embedding, output norm and position biases are used outside of any block.
    kept |= keep_whole(model, dtype=dtype, device=device)
    model.encoder.register_forward_pre_hook(_require_input_gradient)
    return kept


def _init_bmtrain(bmtrain: Any, seed: int) -> None:
    """Create BMTrain's communicator and undo its side effects: it disables cuDNN, which has the fastest attention, and
    restricts the process to some of the CPUs."""
    cudnn, cpus, threads = torch.backends.cudnn.enabled, os.sched_getaffinity(0), torch.get_num_threads()
    bmtrain.init_distributed(seed=seed)
    torch.backends.cudnn.enabled = cudnn
    os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)


def _shard_layer(bmtrain: Any, layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Kept]]:
    """Return the layer as a block that gathers its frozen weights and recomputes its activations in the backward pass,
    and this rank's shards of its weights by name."""
    trained = [
        (parent, name, m) for parent in layer.modules() for name, m in parent.named_children() if isinstance(m, LowRank)
    ]
    for parent, name, _ in trained:
        delattr(parent, name)
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            blank = torch.zeros((), dtype=dtype).expand(parameter.shape)  # takes no memory
            module.register_parameter(name, bmtrain.DistributedParameter(blank, requires_grad=False))
    block: nn.Module = bmtrain.CheckpointBlock(layer)
    shards = {
        # `_start_partition`: where this rank's shard of the parameter begins; None if it has none.
        name: Kept(parameter.data, vars(parameter)["_start_partition"] or 0)
        for name, parameter in layer.named_parameters()
    }
    for parent, name, module in trained:
        parent.add_module(name, module)
    return block, shards


def _require_input_gradient(_encoder: nn.Module, inputs: tuple[Tensor, Any]) -> None:
    """Make the first block's input require a gradient: a block without one never ends its backward pass, and keeps its
    gathered weights."""
    if torch.is_grad_enabled():
        inputs[0].requires_grad_()
