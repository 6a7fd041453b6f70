"""The engine `torch`: each rank has the whole base model, gradients of the trained parameters are all-reduced.

Runs on CPUs with gloo and on GPUs with NCCL. The engine `bmtrain` with replicated weights is this engine too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from cpmbee_job.errors import ModelError
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.engine.interface import EngineState, EvalResult, ParameterStatistics, StepResult
from cpmbee_job.train.engine.optim import LossScale


class TorchEngine:
    """See `Engine`. Trains the parameters of `model` that require gradients.

    Whatever precision the model computes in, their master weights, updates and checkpoints are fp32.
    """

    skips_padding: ClassVar[bool] = True
    """Whether a micro-batch without targets, which only pads a rank's share, skips the forward and backward pass."""

    def __init__(self, model: CpmBee, train: TrainSpec, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.seed = train.seed
        self.clip_grad = train.clip_grad
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {
            name: p if p.dtype == torch.float32 else p.detach().float() for name, p in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(self.masters.values(), lr=0.0, weight_decay=train.weight_decay)
        self.loss_scale = LossScale(train.loss_scale, train.loss_scale_factor, train.loss_scale_steps)

    def step(
        self, step: int, micro_batches: Sequence[ModelInputs], learning_rate: float, wants_stop: Callable[[], bool]
    ) -> StepResult:
        while True:  # again with a smaller loss scale if the gradients overflow
            gradient: Tensor | None = None  # of all trained parameters, flat, fp32, summed over all ranks
            sums: Tensor | None = None  # (4,) fp64 over all ranks: loss, target tokens, tokens, requests to stop
            for number, group in enumerate(self._reduction_groups(micro_batches)):
                # Dropout is a function of seed, step and rank: a checkpoint needs no random state.
                torch.manual_seed(hash((self.seed, step, number * self.world_size + self.rank)))
                for tensor in (*self.parameters.values(), *self.masters.values()):
                    tensor.grad = None
                own_sums = torch.zeros(4, dtype=torch.float64, device=self.device)

                # Forward and backward
                for batch in group:
                    if len(batch.targets) == 0 and self.skips_padding:
                        continue
                    inputs = batch.to(self.device, non_blocking=True)
                    loss = self.model.target_losses(inputs, self.model(inputs)).sum()
                    (loss * self.loss_scale.value).backward()  # type: ignore[no-untyped-call]
                    own_sums[0] += loss.detach()
                    own_sums[1] += len(batch.targets)
                    own_sums[2] += len(batch.ids)
                    del inputs, loss  # frees the graph before the next forward pass
                own_sums[3] += float(wants_stop())  # an assignment would wait for the GPU

                # All-reduce
                gradient = self._all_reduce(gradient, self._flat_gradient())
                sums = self._all_reduce(sums, own_sums)
            assert gradient is not None
            assert sums is not None

            # Clip
            gradient /= self.loss_scale.value * sums[1].clamp(min=1.0)
            norm = gradient.norm()
            if self.clip_grad:
                gradient *= torch.clamp(self.clip_grad / (norm + 1e-6), max=1.0)
            # The only wait for the GPU in a step
            loss_sum, targets, tokens, stop_requests, grad_norm = torch.cat([sums, norm.double().reshape(1)]).tolist()
            mean_loss = loss_sum / max(targets, 1.0)
            if not math.isfinite(loss_sum):
                has_fp16 = any(p.dtype == torch.float16 for p in self.model.parameters())
                hint = "fp16 overflows above 65,504; set train.precision: bf16" if has_fp16 else None
                raise ModelError(f"the loss is {mean_loss}{self._first_bad_parameter()}", hint=hint)
            if grad_norm < float("inf"):
                break
            self.loss_scale.overflowed()

        # Update
        sizes = [master.numel() for master in self.masters.values()]
        for master, own_gradient in zip(self.masters.values(), torch.split(gradient, sizes), strict=True):
            master.grad = own_gradient.view_as(master)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self._copy_masters_to_model()
        scale = self.loss_scale.value
        self.loss_scale.updated()
        return StepResult(mean_loss, grad_norm, scale, int(tokens), int(targets), stop=stop_requests > 0)

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[ModelInputs], wants_stop: Callable[[], bool]) -> EvalResult | None:
        self.model.eval()
        try:
            sums: Tensor | None = None  # (2,) fp64 over all ranks: loss, target tokens
            for group in self._reduction_groups(micro_batches):
                own_sums = torch.zeros(2, dtype=torch.float64, device=self.device)
                for batch in group:
                    if self._any_rank(wants_stop()):
                        return None
                    if len(batch.targets) == 0 and self.skips_padding:
                        continue
                    inputs = batch.to(self.device, non_blocking=True)
                    own_sums[0] += self.model.target_losses(inputs, self.model(inputs)).sum()
                    own_sums[1] += len(batch.targets)
                sums = self._all_reduce(sums, own_sums)
        finally:
            self.model.train()
        assert sums is not None
        loss_sum, targets = sums.tolist()
        return EvalResult(loss=loss_sum / max(targets, 1.0), target_tokens=int(targets))

    def _flat_gradient(self) -> Tensor:
        """Return this rank's gradient of all trained parameters, flat, fp32."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        return torch.cat([g.flatten().float() for g in gradients])

    def _reduction_groups(self, micro_batches: Iterable[ModelInputs]) -> Iterable[Iterable[ModelInputs]]:
        """Group the micro-batches whose sums are reduced together over all ranks: here all of them."""
        return [micro_batches]

    def _all_reduce(self, total: Tensor | None, own: Tensor) -> Tensor:
        """Return `total` (None for the first group) plus the sum of every rank's `own`. May reuse both."""
        assert total is None  # there is only one group
        if dist.is_initialized():
            dist.all_reduce(own)
        return own

    def _any_rank(self, flag: bool) -> bool:
        if not dist.is_initialized():
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    @torch.no_grad()
    def _copy_masters_to_model(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter is not self.masters[name]:
                parameter.copy_(self.masters[name])

    def state(self) -> EngineState:
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            tensors[f"parameter/{name}"] = master.detach().to("cpu", copy=True)
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value.detach().to("cpu", copy=True)
        return EngineState(tensors, {"loss_scale": asdict(self.loss_scale)})

    @torch.no_grad()
    def load_state(self, state: EngineState) -> None:
        for name, master in self.masters.items():
            master.copy_(state.tensors[f"parameter/{name}"])
            moments = {
                key.partition("/")[0]: value for key, value in state.tensors.items() if key.partition("/")[2] == name
            }
            moments.pop("parameter")
            self.optimizer.state[master] = {
                # AdamW keeps `step` on the CPU
                key: value.clone() if key == "step" else value.to(master.device, copy=True)
                for key, value in moments.items()
            }
        self._copy_masters_to_model()
        self.loss_scale = LossScale(**state.values["loss_scale"])

    def trained_weights(self) -> dict[str, Tensor]:
        return {name: master.detach().to("cpu", copy=True) for name, master in self.masters.items()}

    def statistics(self) -> list[ParameterStatistics]:
        return [
            ParameterStatistics(
                name,
                mean=p.mean().item(),
                std=p.std(correction=0).item(),
                grad_norm=0.0 if p.grad is None else p.grad.norm().item(),
            )
            for name, p in self.masters.items()
        ]

    def _first_bad_parameter(self) -> str:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"; parameter {name} is not finite"
        return "; all parameters are finite"
