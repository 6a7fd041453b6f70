"""What is trained on what: the sections that decide the delta."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from cpmbee_job.spec.types import Count, NonNegative, Place, Section

RowFormat = Annotated[str, Field(pattern=r"^(bee|ccpm|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]


def _one_is_positive(frequencies: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(frequencies):
        raise ValueError("needs a frequency above 0")
    return frequencies


class DataSetSpec(Section):
    """One of several training sets."""

    path: Place = Field(description="Its rows, as `data.train` would name them.")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Its examples in an epoch, relative to those of the other sets. Either all sets have a weight, or "
        "none: then an epoch has each row of each set once.",
    )
    format: RowFormat | None = Field(
        None, description="`bee`, `ccpm` or `module:function`, as in `data.format`, which is the default."
    )
    in_context: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AfterValidator(_one_is_positive)] = Field(
        (1.0,),
        strict=False,
        description="How often an example sees 0, 1, 2, ... others of this set with their answers, as relative "
        "frequencies. `[1]`: never any.",
    )


def _all_weigh_or_none(sets: tuple[DataSetSpec, ...]) -> tuple[DataSetSpec, ...]:
    if not sets:
        raise ValueError("names no data set")
    if len({one.weight is None for one in sets}) > 1:
        raise ValueError("give every set a weight, or none")
    return sets


_SEVERAL = "several sets"
_ONE = "one place"
KINDS_OF_TRAIN = (_ONE, _SEVERAL)
"""What pydantic puts into the location of an error inside `data.train`."""
_Train = Annotated[
    Annotated[Place, Tag(_ONE)]
    | Annotated[tuple[DataSetSpec, ...], Field(strict=False), AfterValidator(_all_weigh_or_none), Tag(_SEVERAL)],
    Discriminator(lambda value: _SEVERAL if isinstance(value, list | tuple) else _ONE),
]


class DataSpec(Section):
    train: _Train = Field(
        description="Training rows: a file or folder of JSON lines (.jsonl, .gz, .zst) or Parquet, or a data set "
        "that `preprocess` or the original code wrote. `s3://`, `file://` or a path. Or a list of several sets."
    )
    eval: Place | None = Field(
        None,
        description="Evaluation rows, likewise. Without them there is no early stopping and "
        "the last delta counts as the best.",
    )
    format: RowFormat = Field(
        "bee",
        description="How a row becomes an example: `bee` (it is one already), `ccpm`, or "
        "`module:function` of your own.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="What a row that can't be used does: end the job, or be counted and left out."
    )
    too_long: Literal["fail", "skip", "truncate-context"] = Field(
        "fail",
        description="The same for an example of more than `train.max_length` tokens. `truncate-context` cuts the "
        "middle out of its longest given texts, never out of keys, answers or special tokens.",
    )
    strict: bool = Field(
        False, description="Refuse what would be mended with a warning: a `<` that begins no token, numbers as texts."
    )

    @property
    def train_sets(self) -> tuple[DataSetSpec, ...]:
        """The training sets, also where there is one."""
        return (DataSetSpec(path=self.train),) if isinstance(self.train, str) else self.train


class TrainSpec(Section):
    use_delta: bool = Field(True, description="Train LoRA on a frozen base; false trains all weights.")
    epochs: Count = Field(1, description="Passes over the training rows.")
    batch_size: Count = Field(1, description="Most rows in one forward pass of one process.")
    global_batch_size: Count | None = Field(
        None,
        description="Rows in one step, over all processes. Default: batch_size x workers.count x max(workers.gpus, 1).",
    )
    max_length: Annotated[int, Field(ge=16)] = Field(2048, description="Tokens in a row.")
    max_steps: Count | None = Field(None, description="End after so many steps, if the epochs have not ended before.")
    lr: Annotated[float, Field(gt=0)] = Field(
        1e-4, description="Peak learning rate (the `noam` style divides it by the root of the step)."
    )
    train_iters: Count = Field(
        1000, description="Horizon of the learning rate schedule, in steps; it ends no training."
    )
    lr_decay_iters: Count | None = Field(None, description="The horizon, where it differs from train_iters.")
    warmup_iters: NonNegative = Field(1, description="Steps of linear warm-up.")
    lr_decay_style: Literal["noam", "linear", "cosine", "exponential", "constant"] = Field(
        "noam", description="Shape of the learning rate after warm-up."
    )
    start_step: NonNegative = Field(0, description="Step at which the learning rate schedule begins.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")
    clip_grad: Annotated[float, Field(ge=0)] = Field(1.0, description="Largest gradient norm; 0 leaves it alone.")
    loss_scale: Annotated[float, Field(gt=0)] = Field(32768.0, description="Initial loss scale of fp16 training.")
    loss_scale_factor: Annotated[float, Field(gt=1)] = Field(2.0, description="What it is multiplied or divided by.")
    loss_scale_steps: Count = Field(512, description="Steps without overflow before it grows.")
    eval_interval: Count = Field(50, description="Steps between evaluations; the last step is always evaluated.")
    early_stop_patience: NonNegative = Field(
        5, description="End after so many evaluations without a better loss; 0: never."
    )
    inspect_iters: NonNegative = Field(
        0, description="Steps between printed parameter and gradient statistics; 0: never."
    )
    checkpoint_interval: Count = Field(50, description="Steps between checkpoints.")
    keep_checkpoints: Count = Field(
        3, description="Newest checkpoints and deltas that are kept, beside the best delta."
    )
    drop_last: bool = Field(
        False, description="Leave out an epoch's last step where it has fewer rows than the others."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1234, description="Seed of the order of rows and of LoRA's first weights."
    )
    deterministic: bool = Field(
        False,
        description="The same bytes of the delta for any number of processes, also when it changes: every row by "
        "itself, gradients added in the step's order. Slower; machines and versions must be of one kind.",
    )
    save_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "cpm_bee_finetune", description="File name of the delta."
    )
    task_name: str = Field("task", description="Name of the task in TensorBoard.")
    engine: Literal["auto", "torch", "bmtrain"] = Field(
        "auto", description="What executes a step. `auto`: `bmtrain` where there are a GPU and BMTrain, else `torch`."
    )
    layout: Literal["auto", "replicated", "sharded"] = Field(
        "auto",
        description="How GPUs hold the frozen base: `replicated`, whole on each, or `sharded`, a share on each, "
        "gathered layer by layer in every pass (engine `bmtrain`). `auto`: whole where it fits.",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto",
        description="What the model computes in; what is trained is kept in fp32. `auto`: fp32 on a CPU; on a GPU "
        "fp16, or fp32 where `config.json` has `half: false`.",
    )
    recompute_layers: NonNegative | None = Field(
        None,
        description="Layers whose activations are not kept for the way back but computed again. Default: as few as fit "
        "into a GPU's memory, none on a CPU. With the layout `sharded` it is all of them.",
    )
    stall_timeout: Annotated[float, Field(gt=0)] = Field(
        900.0,
        description="Seconds for which nothing moves on any rank, while loading, training or publishing, after which "
        "the workers end themselves to be restarted. Set it above two minutes and above the longest step.",
    )
    deadline: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds after which the run ends for good, checkpoint written."
    )
    max_failures: Count = Field(3, description="Failures for the same reason at the same step that end the run.")

    @model_validator(mode="after")
    def _sharded_where_it_can_be(self) -> Self:
        reasons = {
            "engine: torch": self.engine == "torch",
            "use_delta: false": not self.use_delta,
            "deterministic: true": self.deterministic,
        }
        for setting, is_set in reasons.items():
            if self.layout == "sharded" and is_set:
                raise ValueError(f"layout: sharded can't be had with {setting}")
        return self


class LoraSpec(Section):
    r: Count = Field(8, description="Rank.")
    alpha: Count = Field(16, description="The update is scaled by alpha / r.")
    modules: tuple[str, ...] = Field(
        ("project_q", "project_v"),
        strict=False,
        min_length=1,
        description="Linear layers that get one, by the last part of their name.",
    )
    init_from: Place | None = Field(None, description="A delta folder or .pt file to start from.")
