"""The engine `torch`: the base whole on each rank, gradients of the trained parameters summed over all ranks.

Runs on CPU over gloo, and on GPUs over NCCL. It is the engine `bmtrain` too where the base is whole on each GPU.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

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
    """See `Engine`. The trained parameters are those of `model` that require gradients; whatever it computes in, they
    are kept, updated and saved in fp32."""

    def __init__(self, model: CpmBee, train: TrainSpec, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
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
        while True:
            loss_sum, targets, tokens, stop_votes, norm = self._gradients(step, micro_batches, wants_stop)
            if not math.isfinite(loss_sum):
                words = f"the loss is {loss_sum / max(targets, 1.0)}{self._first_bad_parameter()}"
                hint = "fp16 ends at 65,504; set train.precision to bf16" if self._has_fp16() else None
                raise ModelError(words, hint=hint)
            if norm < float("inf"):
                break
            self.loss_scale.overflowed()
        scale = self.loss_scale.value
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self._renew()
        self.loss_scale.updated()
        return StepResult(
            loss=loss_sum / max(targets, 1.0),
            grad_norm=norm,
            loss_scale=scale,
            tokens=int(tokens),
            target_tokens=int(targets),
            stop=stop_votes > 0,
        )

    def _gradients(
        self, step: int, micro_batches: Sequence[ModelInputs], wants_stop: Callable[[], bool]
    ) -> list[float]:
        """Leave the clipped gradient of the mean loss in every master's `.grad`. Returns, over all ranks, the sum
        of losses, number of targets, number of tokens, votes to stop, and the gradient norm before clipping."""
        flat, counts = self._summed(step, micro_batches, wants_stop)
        flat /= self.loss_scale.value * counts[1].clamp(min=1.0)
        norm = flat.norm()
        if self.clip_grad:
            flat *= torch.clamp(self.clip_grad / (norm + 1e-6), max=1.0)
        sizes = [master.numel() for master in self.masters.values()]
        for master, gradient in zip(self.masters.values(), torch.split(flat, sizes), strict=True):
            master.grad = gradient.view_as(master)
        return torch.cat([counts, norm.double().reshape(1)]).tolist()

    def _summed(
        self, step: int, micro_batches: Sequence[ModelInputs], wants_stop: Callable[[], bool]
    ) -> tuple[Tensor, Tensor]:
        """Over all ranks: the scaled gradient of all parameters, flat, and the counts (4,) fp64, which are the sum of
        losses, targets, tokens, votes to stop."""
        # Dropout, where a model has it, is a function of seed, step and rank: no random state to save.
        torch.manual_seed(hash((self.seed, step, self.rank)))
        self._clear_gradients()
        counts = torch.zeros(4, dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            self._backward(batch, counts)
        counts[3] += float(wants_stop())  # to assign a number of the host would wait for the GPU
        flat = self._flat_gradient()
        if dist.is_initialized():
            dist.all_reduce(flat)
            dist.all_reduce(counts)
        return flat, counts

    def _clear_gradients(self) -> None:
        for tensor in (*self.parameters.values(), *self.masters.values()):
            tensor.grad = None

    @torch.no_grad()
    def _renew(self) -> None:
        """Bring the masters' values into the model."""
        for name, parameter in self.parameters.items():
            if parameter is not self.masters[name]:
                parameter.copy_(self.masters[name])

    def _takes_part(self, batch: ModelInputs) -> bool:
        """Whether it has to go through the model: one without targets only pads, for a rank with fewer rows."""
        return len(batch.targets) > 0

    def _backward(self, batch: ModelInputs, counts: Tensor) -> None:
        """Add a micro-batch's scaled gradients to `.grad`, and its losses, targets and tokens to `counts`."""
        if not self._takes_part(batch):
            return
        inputs = batch.to(self.device, non_blocking=True)
        loss = self.model.target_losses(inputs, self.model(inputs)).sum()
        (loss * self.loss_scale.value).backward()  # type: ignore[no-untyped-call]
        counts[0] += loss.detach()
        counts[1] += len(batch.targets)
        counts[2] += len(batch.ids)

    def _flat_gradient(self) -> Tensor:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        return torch.cat([g.flatten().float() for g in gradients])

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[ModelInputs], wants_stop: Callable[[], bool]) -> EvalResult | None:
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            if self._any_rank(wants_stop()):
                self.model.train()
                return None
            own = torch.zeros_like(totals)
            if self._takes_part(batch):
                inputs = batch.to(self.device, non_blocking=True)
                own[0] = self.model.target_losses(inputs, self.model(inputs)).sum()
                own[1] = len(batch.targets)
            self._count_evaluated(totals, own)
        self.model.train()
        self._sum_evaluated(totals)
        loss_sum, targets = totals.tolist()
        return EvalResult(loss=loss_sum / max(targets, 1.0), target_tokens=int(targets))

    def _count_evaluated(self, totals: Tensor, own: Tensor) -> None:
        """Add the sum of losses and the targets of a micro-batch of this rank."""
        totals += own

    def _sum_evaluated(self, totals: Tensor) -> None:
        """Make of this rank's totals those of all."""
        if dist.is_initialized():
            dist.all_reduce(totals)

    def _any_rank(self, flag: bool) -> bool:
        if not dist.is_initialized():
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item())

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
                # `step` stays on the CPU, where AdamW keeps it
                key: value.clone() if key == "step" else value.to(master.device, copy=True)
                for key, value in moments.items()
            }
        self._renew()
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

    def _has_fp16(self) -> bool:
        return any(p.dtype == torch.float16 for p in self.model.parameters())

    def _first_bad_parameter(self) -> str:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"; parameter {name} is not finite"
        return "; all parameters are finite"
