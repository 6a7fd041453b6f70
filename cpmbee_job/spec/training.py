"""Data, training and LoRA: the sections that decide the delta."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from cpmbee_job.spec.types import Count, NonNegative, Place, Section

RowFormat = Annotated[str, Field(pattern=r"^(bee|ccpm|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]


def _one_is_positive(frequencies: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(frequencies):
        raise ValueError("must contain a frequency above 0")
    return frequencies


_Frequencies = Annotated[tuple[Annotated[float, Field(ge=0)], ...], AfterValidator(_one_is_positive)]


class DataSetSpec(Section):
    """One of several training data sets."""

    path: Place
    """Records of the set, as in `data.train`."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the examples in an epoch, relative to the other sets. Set it for all sets or for none; without weights,
    an epoch contains every packed row of every set once."""
    format: RowFormat | None = None
    """Format of the records: `bee`, `ccpm` or `module:function`. Default: `data.format`."""
    in_context: _Frequencies = Field((1.0,), strict=False)
    """Relative frequencies of 0, 1, 2, ... in-context samples (other examples of the set, with answers) before an
    example. `[1]`: no samples."""


def _all_or_no_weights(sets: tuple[DataSetSpec, ...]) -> tuple[DataSetSpec, ...]:
    if not sets:
        raise ValueError("must contain a data set")
    if len({one.weight is None for one in sets}) > 1:
        raise ValueError("set a weight for all sets or for none")
    return sets


_SEVERAL = "several sets"
_ONE = "one place"
KINDS_OF_TRAIN = (_ONE, _SEVERAL)
"""Parts of the location of pydantic's errors inside `data.train`."""
_Train = Annotated[
    Annotated[Place, Tag(_ONE)]
    | Annotated[tuple[DataSetSpec, ...], Field(strict=False), AfterValidator(_all_or_no_weights), Tag(_SEVERAL)],
    Discriminator(lambda value: _SEVERAL if isinstance(value, list | tuple) else _ONE),
]


class DataSpec(Section):
    train: _Train
    """Training records: a file or folder of JSON Lines (.jsonl, .gz, .zst) or Parquet, or a data set written by
    `preprocess` or by the original code. An `s3://` or `file://` URL, a path, or a list of sets."""
    eval: Place | None = None
    """Evaluation records, in the same forms. Without them there is no early stopping; the last delta is the best."""
    format: RowFormat = "bee"
    """Format of the records: `bee` (a record is an example), `ccpm`, or your own `module:function`."""
    on_error: Literal["fail", "skip"] = "fail"
    """How to handle an invalid record: `fail` the job, or `skip` and count it."""
    too_long: Literal["fail", "skip", "truncate-context"] = "fail"
    """How to handle an example of more than `train.max_length` tokens. `truncate-context` removes the middle of its
    longest input texts, never keys, answers or special tokens."""
    strict: bool = False
    """Treat input that would be corrected with a warning as an error: a `<` that begins no token, numbers as text."""

    @property
    def train_sets(self) -> tuple[DataSetSpec, ...]:
        """The training sets, even if there is only one."""
        return (DataSetSpec(path=self.train),) if isinstance(self.train, str) else self.train


class TrainSpec(Section):
    use_delta: bool = True
    """Train LoRA on a frozen base model; `false` trains all weights."""
    epochs: Count = 1
    """Passes over the training data."""
    batch_size: Count = 1
    """Maximum number of packed rows in one forward pass of one process."""
    global_batch_size: Count | None = None
    """Packed rows in one step, over all processes. Default: batch_size x workers.count x max(workers.gpus, 1)."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens in a packed row."""
    max_steps: Count | None = None
    """Maximum number of steps, if it is reached before the last epoch ends."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate; `noam` divides it by the square root of the step."""
    train_iters: Count = 1000
    """Horizon of the learning rate schedule in steps; it does not limit training."""
    lr_decay_iters: Count | None = None
    """Overrides train_iters as the horizon."""
    warmup_iters: NonNegative = 1
    """Steps of linear warmup."""
    lr_decay_style: Literal["noam", "linear", "cosine", "exponential", "constant"] = "noam"
    """Learning rate schedule after warmup."""
    start_step: NonNegative = 0
    """First step of the learning rate schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Maximum gradient norm; 0 disables clipping."""
    loss_scale: Annotated[float, Field(gt=0)] = 32768.0
    """Initial loss scale of fp16 training."""
    loss_scale_factor: Annotated[float, Field(gt=1)] = 2.0
    """Factor by which the loss scale grows or shrinks."""
    loss_scale_steps: Count = 512
    """Steps without overflow before the loss scale grows."""
    eval_interval: Count = 50
    """Steps between evaluations; the last step is always evaluated."""
    early_stop_patience: NonNegative = 5
    """Stop after this many evaluations without a better loss; 0: never."""
    inspect_iters: NonNegative = 0
    """Steps between printed statistics of parameters and gradients; 0: never."""
    checkpoint_interval: Count = 50
    """Steps between checkpoints."""
    keep_checkpoints: Count = 3
    """Number of newest checkpoints and deltas to keep, in addition to the best delta."""
    drop_last: bool = False
    """Drop the last step of an epoch if it has fewer packed rows than the others."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1234
    """Seed of the data order and of LoRA's initial weights."""
    deterministic: bool = False
    """Compute a bit-identical delta for any number of processes, even if it changes: one packed row per forward pass,
    gradients summed in a fixed order. Slower; requires identical machines and versions."""
    save_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "cpm_bee_finetune"
    """File name of the delta in the original's format."""
    task_name: str = "task"
    """Name of the task in TensorBoard."""
    engine: Literal["auto", "torch", "bmtrain"] = "auto"
    """Training engine. `auto`: `bmtrain` if a GPU and BMTrain are available, else `torch`."""
    layout: Literal["auto", "replicated", "sharded"] = "auto"
    """Placement of the frozen base model on the GPUs: `replicated` on each, or `sharded` over all and gathered layer by
    layer in every pass (engine `bmtrain`). `auto`: `replicated` if it fits."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Data type of the model; trained weights are always kept in fp32. `auto`: fp32 on a CPU; on a GPU fp16, or fp32 if
    `config.json` has `half: false`."""
    recompute_layers: NonNegative | None = None
    """Number of layers with activation checkpointing (recompute in the backward pass). Default: as few as fit into GPU
    memory, none on a CPU. The layout `sharded` always recomputes all layers."""
    stall_timeout: Annotated[float, Field(gt=0)] = 900.0
    """Seconds without progress on any rank, while loading, training or publishing, after which the workers exit and are
    restarted. Set it above two minutes and above the longest step."""
    deadline: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which the run writes a checkpoint and fails, counted from its first attempt."""
    max_failures: Count = 3
    """Consecutive failures for the same reason at the same step after which the run fails."""

    @model_validator(mode="after")
    def _compatible_layout(self) -> Self:
        reasons = {
            "engine: torch": self.engine == "torch",
            "use_delta: false": not self.use_delta,
            "deterministic: true": self.deterministic,
        }
        for setting, is_set in reasons.items():
            if self.layout == "sharded" and is_set:
                raise ValueError(f"layout: sharded is incompatible with {setting}")
        return self


class LoraSpec(Section):
    r: Count = 8
    """Rank of the update."""
    alpha: Count = 16
    """Scale of the update: alpha / r."""
    modules: tuple[str, ...] = Field(("project_q", "project_v"), strict=False, min_length=1)
    """Linear layers with LoRA, by the last part of their name."""
    init_from: Place | None = None
    """Delta folder or .pt file with the initial weights."""
