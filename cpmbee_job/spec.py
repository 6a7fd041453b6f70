"""The job spec: the YAML file that says what to train on what, as a frozen pydantic model.

Every field's description is its documentation: `docs/spec.md` and the JSON Schema are generated from here.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cpmbee_job.errors import SpecError, UsageError

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMK]i|[EPTGMkm])?$")]


def _is_place(url: str) -> str:
    if not re.fullmatch(r"s3://[A-Za-z0-9][\w.-]*(/.*)?|file:///.*|/.*|[^:/]+(/.*)?", url):
        raise ValueError("needs the form s3://bucket/folder/, file:///folder/ or a path")
    return url


Place = Annotated[str, AfterValidator(_is_place)]


class Section(BaseModel):
    """Base of every part of the spec: immutable, and no key but the ones it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSpec(Section):
    train: Place = Field(
        description="Training rows: a file or folder of JSON lines (.jsonl, .gz, .zst), or a data set "
        "that `preprocess` or the original code wrote. `s3://`, `file://` or a path."
    )
    eval: Place | None = Field(
        None,
        description="Evaluation rows, likewise. Without them there is no early stopping and "
        "the last delta counts as the best.",
    )
    format: Annotated[str, Field(pattern=r"^(bee|ccpm|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = Field(
        "bee",
        description="How a row becomes an example: `bee` (it is one already), `ccpm`, or "
        "`module:function` of your own.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="What a row that can't be used does: end the job, or be counted and left out."
    )
    too_long: Literal["fail", "skip"] = Field(
        "fail", description="The same for an example of more than `train.max_length` tokens."
    )


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
    save_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "cpm_bee_finetune", description="File name of the delta."
    )
    task_name: str = Field("task", description="Name of the task in TensorBoard.")
    engine: Literal["auto", "torch"] = Field("auto", description="What executes a step; only torch is there yet.")
    stall_timeout: Annotated[float, Field(gt=0)] = Field(
        900.0, description="Seconds without progress after which a worker ends itself to be restarted."
    )
    deadline: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds after which the run ends for good, checkpoint written."
    )
    max_failures: Count = Field(3, description="Failures for the same reason at the same step that end the run.")


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


class WorkersSpec(Section):
    count: Count = Field(1, description="Pods (`local`: processes, unless --processes says otherwise).")
    min: Count | None = Field(None, description="Fewest pods that training goes on with.")
    max: Count | None = Field(None, description="Most pods that it makes use of.")
    gpus: NonNegative = Field(0, description="GPUs of a pod; 0 trains on CPU.")
    cpu: Quantity | Annotated[int, Field(ge=1)] | None = Field(None, description="CPUs of a pod.")
    memory: Quantity | None = Field(None, description="Memory of a pod, like 64Gi.")
    ephemeral: Quantity | None = Field(None, description="Local disk of a pod, like 100Gi.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.min or self.count, self.max or self.count
        if not low <= self.count <= high:
            raise ValueError(f"needs min <= count <= max, not {low} <= {self.count} <= {high}")
        return self


class StorageSpec(Section):
    endpoint_url: str | None = Field(None, description="S3 endpoint as pods see it; default: AWS's.")
    launcher_endpoint_url: str | None = Field(
        None, description="The same server as the launcher sees it, where that differs."
    )
    region: str | None = Field(None, description="Region; default: the credential chain's.")
    path_style: Literal["auto"] | bool = Field(
        "auto",
        description="Bucket in the path instead of the host name; `auto`: where an endpoint is set, here or by "
        "AWS_ENDPOINT_URL.",
    )
    ca_bundle: str | None = Field(None, description="File with the CA certificates to trust.")
    sse: Literal["AES256", "aws:kms"] | None = Field(None, description="Server-side encryption of what is written.")
    sse_kms_key_id: str | None = Field(None, description="Key for `aws:kms`.")
    secret: str | None = Field(None, description="Kubernetes Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    service_account: str | None = Field(None, description="Kubernetes service account that carries the rights instead.")

    @field_validator("endpoint_url", "launcher_endpoint_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("needs the form http://host:port or https://host")
        if url is not None and urlsplit(url).username is not None:
            # a type of its own, by which `_describe` knows not to show the value
            raise PydanticCustomError("secret", "a spec holds no secrets; give credentials by the environment")
        return url

    def seen_by_launcher(self) -> Self:
        """The same server under the address that this machine reaches it by."""
        return self.model_copy(update={"endpoint_url": self.launcher_endpoint_url or self.endpoint_url})


class JobSpec(Section):
    """What a user writes. `train`, `lora`, `workers` and `storage` may be left out."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)] = Field(
        description="Name of the job: lower case letters, digits and dashes."
    )
    model: Place = Field(
        description="Folder with `vocab.txt`, `config.json` and weights (`*.safetensors` or `pytorch_model.bin`)."
    )
    data: DataSpec
    output: Place = Field(description="Folder under which `<name>/<run>/` appears.")
    train: TrainSpec = TrainSpec()
    lora: LoraSpec = LoraSpec()
    image: str | None = Field(None, description="Image of the training pods.")
    workers: WorkersSpec = WorkersSpec()
    storage: StorageSpec = StorageSpec()

    @property
    def global_batch_size(self) -> int:
        """Rows in one step, whatever the number of processes that are alive."""
        return self.train.global_batch_size or self.train.batch_size * self.workers.count * max(self.workers.gpus, 1)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_spec(path: Path, overrides: Iterable[str] = ()) -> JobSpec:
    """Read a spec file, apply `--set` overrides, and make its paths absolute (they are relative to the file).

    Raises `SpecError` that names file and dotted key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}", hint="`cpmbee-job init` writes one to start from") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return parse_spec(text, source=str(path), overrides=overrides, base=path.absolute().parent)


def parse_spec(text: str, *, source: str, overrides: Iterable[str] = (), base: Path | None = None) -> JobSpec:
    """The spec in `text`; `source` names it in errors, relative paths are taken from `base` where it is given."""
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{source}: a job spec is a mapping of keys to values, this is {type(document).__name__}")
    for override in overrides:
        _apply_override(document, override)
    if base is not None:
        _absolute_paths(document, base)
    try:
        return JobSpec.model_validate_json(json.dumps(document))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise SpecError(f"{source}: {error}", hint="only text, numbers, true/false, lists and mappings") from error
        problems = [_describe(problem) for problem in error.errors()]
        raise SpecError("\n".join(f"{source}: {problem}" for problem in problems)) from error


def known_keys() -> list[str]:
    """All dotted keys of the spec."""
    return list(_walk(JobSpec, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _walk(inner, f"{prefix}{name}.")


def _describe(problem: Mapping[str, Any]) -> str:
    """One pydantic error as `dotted.key: what is wrong (got value); hint`."""
    location = [str(part) for part in problem["loc"]]
    sections = set(known_keys())
    # Members of a union (`literal['auto']`, `bool`) are no keys of the document.
    while (
        len(location) > 1
        and ".".join(location) not in sections
        and problem["type"] != "extra_forbidden"
        and not location[-1].isdigit()
    ):
        location.pop()
    key = ".".join(location) or "(the spec)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(key)}"
    if problem["type"] == "missing":
        return f"{key}: missing; it is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        message = f"not of the form that it needs ({_description(key)})"
    value = problem.get("input")
    shown = (
        ""
        if isinstance(value, dict) or problem["type"] == "secret"
        else f" (got {json.dumps(value, ensure_ascii=False, default=str)})"
    )
    return f"{key}: {message}{shown}"


def _description(key: str) -> str:
    model: Any = JobSpec
    for name in key.split(".")[:-1]:
        model = model.model_fields[name].annotation
    return str(model.model_fields[key.split(".")[-1]].description).rstrip(".")


def _nearest(key: str) -> str:
    keys = known_keys()
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in keys if k.rpartition(".")[0] == parent]
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5) or [
        k for k in keys if k.rpartition(".")[2] == leaf
    ]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(k.rpartition('.')[2] for k in siblings)}" if siblings else ""


def _apply_override(document: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set {override}: needs the form path.to.field=value")
    node = document
    for index, key in enumerate(keys[:-1]):
        if node.get(key) is None:
            node[key] = {}
        if not isinstance(node[key], dict):
            raise SpecError(f"--set {override}: {'.'.join(keys[: index + 1])} is not a section")
        node = node[key]
    try:
        node[keys[-1]] = yaml.load(value, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not valid YAML") from error


def _absolute_paths(document: dict[str, Any], base: Path) -> None:
    data, lora = document.get("data"), document.get("lora")
    places: list[tuple[Any, str]] = [(document, "model"), (document, "output")]
    places += [(data, "train"), (data, "eval"), (lora, "init_from")]
    for section, key in places:
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            section[key] = str(base / value) + ("/" if value.endswith("/") else "")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, and reads `1e-4` as the number it is (YAML 1.1 takes it for text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
