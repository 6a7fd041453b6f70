"""The shape of a model, read from `config.json` in either of two dialects.

    original   dim_model    num_heads            num_layers
    hub        hidden_size  num_attention_heads  num_hidden_layers  (and model_type, distance_scale)

All other names are the same. Keys that do not affect the computation are ignored.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import ModelError

_HUB_NAMES = {"hidden_size": "dim_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
_SIZES = ("vocab_size", "dim_model", "num_heads", "dim_head", "dim_ff", "num_layers")
_MIN_SEGMENT_BUCKETS = 64
"""Number of relations between two segments of an example (depth at most 8) that the bias table must hold."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a CPM-Bee model. Defaults are the original's."""

    vocab_size: int
    dim_model: int
    """Width of the residual stream."""
    num_heads: int
    dim_head: int
    dim_ff: int
    num_layers: int
    """Number of layers, including those that `mask_modules` leaves empty."""
    dropout_p: float = 0.0
    position_bias_num_buckets: int = 256
    position_bias_num_segment_buckets: int = 256
    position_bias_max_distance: int = 2048
    eps: float = 1e-6
    half: bool = True
    """Whether the weights are meant for half precision. On CPU they are used in fp32."""
    distance_scale: float = 16
    """Factor of a token's sub-number in the rotary embedding."""
    mask_modules: tuple[tuple[bool, bool], ...] | None = None
    """For each layer, whether attention and feed-forward are absent."""
    dialect: str = "original"
    """Names that the file uses: `original` or `hub`."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, source: str = "config.json") -> "ModelConfig":
        """Read either dialect. Raises `ModelError` naming `source` and the key."""
        known: dict[str, Any] = {}
        for key, value in document.items():
            name = _HUB_NAMES.get(key, key)
            if name in known and known[name] != value:
                raise ModelError(f"{source}: {key} is {value!r}, but {name} is {known[name]!r}")
            known[name] = value
        if missing := [name for name in _SIZES if known.get(name) is None]:
            raise ModelError(
                f"{source}: missing {', '.join(missing)}",
                hint="use the original's names (dim_model, num_heads, num_layers) or the hub's "
                "(hidden_size, num_attention_heads, num_hidden_layers)",
            )
        if known.get("int4"):
            raise ModelError(f"{source}: int4 weights are not supported", hint="use the model's half-precision weights")
        is_hub = known.get("model_type") is not None or any(key in document for key in _HUB_NAMES)
        values = {f.name: known[f.name] for f in fields(cls) if f.name != "dialect" and known.get(f.name) is not None}
        config = cls(
            **{**values, "mask_modules": _mask_modules(values, source)}, dialect="hub" if is_hub else "original"
        )
        config._check(source)
        return config

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Read a `config.json`. Raises `ModelError` naming the file."""
        return cls.from_dict(read_config(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a `config.json` in the original's dialect."""
        return {name: value for name, value in asdict(self).items() if name != "dialect" and value is not None}

    @property
    def blocks(self) -> tuple[tuple[bool, bool], ...]:
        """For each layer, whether it has attention and feed-forward."""
        masks = self.mask_modules or ((False, False),) * self.num_layers
        return tuple((not no_attention, not no_ffn) for no_attention, no_ffn in masks)

    def _check(self, source: str) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ModelError(f"{source}: {field.name} must be a positive integer (got {value!r})")
            if field.type is float and (type(value) not in (int, float) or value < 0):
                raise ModelError(f"{source}: {field.name} must be a number of at least 0 (got {value!r})")
            if field.type is bool and type(value) is not bool:
                raise ModelError(f"{source}: {field.name} must be true or false (got {value!r})")
        if self.dropout_p >= 1:
            raise ModelError(f"{source}: dropout_p must be less than 1 (got {self.dropout_p!r})")
        if self.position_bias_num_segment_buckets < _MIN_SEGMENT_BUCKETS:
            raise ModelError(
                f"{source}: position_bias_num_segment_buckets must be at least {_MIN_SEGMENT_BUCKETS} "
                f"(got {self.position_bias_num_segment_buckets})"
            )
        if self.position_bias_num_buckets < 4 or self.position_bias_max_distance <= self.position_bias_num_buckets // 4:
            raise ModelError(
                f"{source}: position_bias_num_buckets must be at least 4 (got {self.position_bias_num_buckets}), and "
                f"position_bias_max_distance more than a quarter of it (got {self.position_bias_max_distance})"
            )


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object in a `config.json`. Raises `ModelError` naming the file."""
    try:
        return documents.from_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", hint="a model folder holds a config.json") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error


def _mask_modules(values: Mapping[str, Any], source: str) -> tuple[tuple[bool, bool], ...] | None:
    masks = values.get("mask_modules")
    if masks is None:
        return None
    pairs = isinstance(masks, list | tuple) and all(isinstance(m, list | tuple) and len(m) == 2 for m in masks)
    if not pairs or len(masks) != values["num_layers"]:
        raise ModelError(
            f"{source}: mask_modules must hold a pair (attention absent, feed-forward absent) for each of the "
            f"{values['num_layers']} layers"
        )
    return tuple((bool(attention), bool(ffn)) for attention, ffn in masks)
