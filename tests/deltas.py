"""What tests need to make deltas."""

from torch import Tensor, nn


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA weights of a model, under the original's names."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora." in name}
