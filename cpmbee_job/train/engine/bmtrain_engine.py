"""The engine `bmtrain` with a sharded base: each rank holds a share of every layer, BMTrain gathers a layer's weights
when it is its turn, forward and backward (ZeRO-3 without gradients, since the base has none).

What is trained stays outside BMTrain, whole on each rank, so that a step's sums, clipping, update and state are those
of `TorchEngine`, bit for bit. Written against BMTrain 1.0.1; tried on one GPU (`tests/gpu`), and over several processes
with its own Python code on gloo (`tests/bmtrain_on_cpu.py`), not on several GPUs.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from cpmbee_job.model.lora import LowRank, insert_lora
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.weights.model_folder import Kept, keep_whole
from cpmbee_job.spec.training import LoraSpec
from cpmbee_job.train.engine.torch_engine import TorchEngine


class BmtrainEngine(TorchEngine):
    """`TorchEngine` over a model of `sharded`."""

    def _takes_part(self, batch: ModelInputs) -> bool:  # noqa: ARG002
        """All ranks gather all layers as often: padding goes through the model too."""
        return True


def sharded(model: CpmBee, *, lora: LoraSpec, seed: int, dtype: torch.dtype, device: torch.device) -> dict[str, Kept]:
    """Put LoRA into a model (on the device `meta`), then spread its layers over all ranks; the places of this rank's
    shares by name, which are still to be filled.

    In this order: wrapping a parameter that is trained would keep a gradient for it, frozen or not later.
    """
    import bmtrain

    if not bmtrain.init.is_initialized():
        _join(bmtrain, seed)
    insert_lora(model, r=lora.r, alpha=lora.alpha, modules=lora.modules, seed=seed, device=device)
    blocks: list[nn.Module] = []
    kept: dict[str, Kept] = {}
    for number, layer in enumerate(model.encoder.layers):
        block, shares = _block(bmtrain, layer, dtype)
        blocks.append(block)
        kept |= {f"encoder.layers.{number}.{name}": share for name, share in shares.items()}
    model.encoder.layers = bmtrain.TransformerBlockList(blocks)
    # Embedding, output norm and the table of biases: used at places that no block surrounds.
    kept |= keep_whole(model, dtype=dtype, device=device)
    model.encoder.register_forward_pre_hook(_begin_gradients)
    return kept


def _join(bmtrain: Any, seed: int) -> None:
    """Make BMTrain's communicator, and take back what else that changes: it turns cuDNN off, which has the fastest
    attention, and leaves the process a part of the CPUs."""
    cudnn, cpus, threads = torch.backends.cudnn.enabled, os.sched_getaffinity(0), torch.get_num_threads()
    bmtrain.init_distributed(seed=seed)
    torch.backends.cudnn.enabled = cudnn
    os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)


def _block(bmtrain: Any, layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Kept]]:
    """A layer as a block that gathers its frozen weights and computes its activations again on the way back, and this
    rank's shares of them."""
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
    shares = {
        # A parameter says where this rank's part of it begins; None where it has none.
        name: Kept(parameter.data, vars(parameter)["_start_partition"] or 0)
        for name, parameter in layer.named_parameters()
    }
    for parent, name, module in trained:
        parent.add_module(name, module)
    return block, shares


def _begin_gradients(_encoder: nn.Module, inputs: tuple[Tensor, Any]) -> None:
    """A block whose input needs no gradient would never learn that its backward has ended, and keep its weights."""
    if torch.is_grad_enabled():
        inputs[0].requires_grad_()
