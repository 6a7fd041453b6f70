"""LoRA on the linear layers of a frozen model, inserted by OpenDelta under the original's names.

    y = W x / sqrt(dim_in) + (alpha / r) B A x

A delta is the state dict of all A and B: `encoder.layers.N....project_q.lora.lora_A` (r, dim_in) and `.lora_B`
(dim_out, r). The original's `.pt` contains nothing else; a delta folder has r and alpha in its manifest.
"""

import contextlib
import io
import logging
import math
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cpmbee_job import documents
from cpmbee_job.errors import ModelError
from cpmbee_job.model.net.layers import Linear
from cpmbee_job.model.weights.saving import save_pickled
from cpmbee_job.model.weights.stored import StoredWeights, listing
from cpmbee_job.model.weights.tensor_table import StoredTensor
from cpmbee_job.model.weights.weight_file import LocalFile
from cpmbee_job.run.keys import DELTA_MANIFEST, DELTA_TENSORS
from cpmbee_job.store.base import file_sha256

_A, _B = ".lora.lora_A", ".lora.lora_B"


@dataclass(frozen=True)
class Delta:
    """LoRA weights as they are stored."""

    state: Mapping[str, Tensor]
    r: int
    alpha: float
    source: str
    """File or folder, for error messages."""
    base_digest: str | None = None
    """Digest of the base weights that it was trained on, if its manifest has one."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the changed layers, without their paths."""
        return tuple(sorted({name.removesuffix(_A).rpartition(".")[2] for name in self.state if name.endswith(_A)}))


class LowRank(nn.Module):
    """(alpha / r) B A x. The weights are fp32 for any model dtype, so that small updates are not lost to rounding."""

    def __init__(self, dim_in: int, dim_out: int, r: int, alpha: float, device: torch.device) -> None:
        super().__init__()
        self.scale = alpha / r
        self.lora_A = nn.Parameter(torch.zeros(r, dim_in, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(dim_out, r, dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.lora_A.T.to(x.dtype)) @ (self.scale * self.lora_B.T).to(x.dtype)


def insert_lora(
    model: nn.Module, r: int, alpha: float, modules: Iterable[str], *, seed: int = 0, device: torch.device | None = None
) -> None:
    """Freeze the model and add LoRA to its linear layers named in `modules`, on `device` or on the layer's device.

    A is random (equal for equal seeds on any rank and device) and B is zero, so the model's output does not change.
    Raises `ModelError` for an unknown layer name.
    """
    names = list(modules)
    known = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)})
    if unknown := [name for name in names if name not in known]:
        raise ModelError(f"lora.modules: unknown layer {unknown[0]!r}", hint=f"use any of {', '.join(known)}")
    if any(name.endswith(_A) for name, _ in model.named_parameters()):
        raise ValueError("the model already has LoRA")
    model.requires_grad_(False)
    delta_model_class(device)(model, lora_r=r, lora_alpha=alpha, modified_modules=names, backend="hf")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_A):
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def read_delta(path: Path) -> Delta:
    """Read a delta folder, or one of its files. The original's format has no alpha; without a manifest beside the file
    it is the original's, 16.

    Raises `ModelError` for anything that is not a delta.
    """
    manifest = _read_manifest((path if path.is_dir() else path.parent) / DELTA_MANIFEST)
    if path.is_dir():
        files = [path / DELTA_TENSORS] if (path / DELTA_TENSORS).is_file() else sorted(path.glob("*.pt"))
        if not files:
            raise ModelError(f"{path}: contains no delta", hint=f"expected {DELTA_TENSORS} or a .pt file")
        if len(files) > 1:
            raise ModelError(f"{path}: contains {len(files)} .pt files", hint=f"name one of them, such as {files[0]}")
        found = files[0]
    else:
        found = path
    if manifest.get("kind") == "full":
        raise ModelError(f"{path}: all weights of a model, not a delta", hint="use this folder as the model")
    stored = StoredWeights([LocalFile(found)])
    _check_delta(stored.tensors, found)
    ranks = {tensor.shape[0] for name, tensor in stored.tensors.items() if name.endswith(_A)}
    if len(ranks) != 1 or manifest.get("r", min(ranks)) not in ranks:
        raise ModelError(f"{path}: the weights have r {sorted(ranks)}, the manifest has {manifest.get('r')}")
    alpha = float(manifest.get("alpha", 16))
    return Delta(dict(stored.stream()), ranks.pop(), alpha, str(path), manifest.get("base_digest"))


def load_delta(model: nn.Module, delta: Delta) -> None:
    """Load a delta into a model that already has LoRA. Raises `ModelError` listing the keys that do not match."""
    own = {name: parameter for name, parameter in model.named_parameters() if name.endswith((_A, _B))}
    _require_shapes(delta, {name: tuple(parameter.shape) for name, parameter in own.items()})
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(delta.state[name])


def apply_delta(model: nn.Module, delta: Delta) -> None:
    """Insert LoRA of the delta's shape into a plain model and load it. Raises `ModelError` if they do not match."""
    insert_lora(model, delta.r, delta.alpha, delta.modules)
    load_delta(model, delta)


def merged_layout(layout: Mapping[str, Tensor], delta: Delta, *, same_dtype: bool = False) -> dict[str, Tensor]:
    """Return names, shapes and dtypes of the base's weights after merging. Changed weights become fp32, because
    rounding them to half precision changes answers; `same_dtype` rounds.

    Raises `ModelError` listing the keys that do not match.
    """
    expected: dict[str, tuple[int, ...]] = {}
    merged = dict(layout)
    for name, weight in layout.items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in delta.modules and weight.ndim == 2:
            dim_out, dim_in = weight.shape
            expected |= {layer + _A: (delta.r, dim_in), layer + _B: (dim_out, delta.r)}
            dtype = weight.dtype if same_dtype else torch.float32
            merged[name] = torch.empty(weight.shape, dtype=dtype, device="meta")
    _require_shapes(delta, expected)
    return merged


def merged_weights(
    base: Iterable[tuple[str, Tensor]], delta: Delta, layout: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the merged weights one by one: W + sqrt(dim_in) (alpha / r) B A, in the dtypes of `merged_layout`. Raises
    `ModelError` for a sum that is not finite."""
    for name, weight in base:
        layer = name.removesuffix(".weight")
        a, b = delta.state.get(layer + _A), delta.state.get(layer + _B)
        if a is None or b is None:
            yield name, weight
            continue
        update = math.sqrt(a.shape[1]) * (delta.alpha / delta.r) * (b.double() @ a.double())
        changed = (weight.double() + update).to(layout[name].dtype)
        if not torch.isfinite(changed).all():
            raise ModelError(
                f"{delta.source}: {name} would be NaN or infinite after merging",
                hint=f"the base is damaged, or the sum is out of range for {changed.dtype}",
            )
        yield name, changed


def save_delta_folder(
    folder: Path, state: Mapping[str, Tensor], manifest: Mapping[str, Any], *, save_name: str
) -> None:
    """Write `delta.safetensors`, `<save_name>.pt` in the original's format, and last the manifest (r, alpha, ...) with
    the size and hash of every file in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, folder / DELTA_TENSORS)
    save_pickled(state, folder / f"{save_name}.pt")
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != DELTA_MANIFEST
    }
    (folder / DELTA_MANIFEST).write_bytes(documents.to_json({**manifest, "files": files}))


def _require_shapes(delta: Delta, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ModelError` listing the keys of the delta that do not match the model."""
    problems = [f"missing {name}" for name in expected if name not in delta.state]
    problems += [f"extra {name}" for name in delta.state if name not in expected]
    for name, tensor in delta.state.items():
        shape = tuple(tensor.shape)
        if expected.get(name, shape) != shape:
            problems.append(f"{name} is {shape}, not {expected[name]}")
    if problems:
        raise ModelError(
            f"{delta.source}: incompatible with the model{listing('', problems)}",
            hint="use the base, r and modules that the delta was trained with",
        )


def _check_delta(state: Mapping[str, StoredTensor], path: Path) -> None:
    layers = {name.removesuffix(_A).removesuffix(_B) for name in state}
    wanted = {layer + end for layer in layers for end in (_A, _B)}
    if not state or wanted != set(state):
        strange = sorted(wanted ^ set(state))
        raise ModelError(
            f"{path}: not a LoRA delta{f' (unpaired key {strange[0]})' if strange else ''}",
            hint="expected pairs like encoder.layers.0.self_att.self_attention.project_q.lora.lora_A and .lora_B",
        )
    for layer in sorted(layers):
        a, b = state[layer + _A], state[layer + _B]
        if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
            raise ModelError(f"{path}: {layer} has {a.dtype} and {b.dtype}; LoRA weights must be floating point")
        if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{path}: {layer}: incompatible shapes: lora_A {a.shape}, lora_B {b.shape}",
                hint="lora_A must have shape (r, dim_in), lora_B (dim_out, r)",
            )


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        manifest = documents.from_json(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not all(
        type(manifest.get(key, 1)) in (int, float) and 0 < manifest.get(key, 1) < math.inf for key in ("r", "alpha")
    ):
        raise ModelError(f"{path}: r and alpha must be greater than 0")
    return manifest


def delta_model_class(device: torch.device | None = None) -> Any:
    """Return OpenDelta's `LoraModel` with low-rank layers that keep their weights in fp32."""
    with _quiet_import():
        from opendelta import LoraModel

    class Fp32LoraModel(LoraModel):  # type: ignore[misc]
        def new_module_like(self, child_module: Linear) -> LowRank:
            on = device or child_module.weight.device
            module = LowRank(child_module.in_features, child_module.out_features, self.lora_r, self.lora_alpha, on)
            self.delta_modules.append(module)
            return module

    return Fp32LoraModel


@contextlib.contextmanager
def _quiet_import() -> Any:
    """Import OpenDelta without its warnings and prints. It imports `turtle` by mistake, which requires a graphical
    toolkit that servers do not have, so a stub replaces it."""
    had_turtle = "turtle" in sys.modules
    if not had_turtle:
        stub = types.ModuleType("turtle")
        stub.back = None  # type: ignore[attr-defined]
        sys.modules["turtle"] = stub
    logging.getLogger("opendelta").setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        if not had_turtle:
            sys.modules.pop("turtle", None)
