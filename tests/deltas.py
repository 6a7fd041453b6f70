"""What tests need to make deltas."""

from torch import Tensor, nn

from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.model.weights.pieces import digest, read_pieces
from cpmbee_job.model.weights.stored import StoredWeights


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA weights of a model, under the original's names."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora." in name}


def stored_digest(files: ModelFiles) -> str:
    """The digest of a model's files, which a loaded model has in `base_digest`."""
    stored = StoredWeights(files.weights)
    return digest(stored.tensors, (sums for done in read_pieces(stored.pieces()) for sums in done.sums))
