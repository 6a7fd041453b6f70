"""What launcher and pods agree on: where a run's objects are, and the records in them.

<output>/<name>/<run>/
    spec.yaml  data.json  status.json  metrics.jsonl  result.json
    attempts/<attempt>.json                                    who tried when; numbered by conditional put
    attempts/<attempt>.begin.json                              the checkpoint that it went on from
    checkpoints/<step>/state.<attempt>.safetensors, manifest.<attempt>.json     checkpoints/LATEST
    rows/<step>.<attempt>.jsonl                                 which rows were trained on since the checkpoint before
    delta/<step>.<attempt>/  delta/BEST  delta/LAST
    delta/<step>.<attempt>/scores/<eval digest>.json            what `evaluate --record` has found
    tensorboard/  logs/<pod>/<attempt>.log
<output>/prepared/<digest>/part-00000.arrow ...  index.json
<output>/uploads/<digest of the content>/...                   files of the launcher's machine
<output>/inference/<digest>/request.json  scores.json, per-example.jsonl or rows.jsonl     `--on-cluster`
<where promoted deltas lie>/
    delta/<digest>/  delta/BEST                                 as in a run's folder, so that it may be named as one is
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json as parse_json

from cpmbee_job.errors import DamagedError

STORAGE_ENV = "CPMBEE_STORAGE"
"""Environment variable with the JSON of `StorageSpec` (no secrets in it), for processes that get only a run's URL."""
SPEC_ENV = "CPMBEE_SPEC"
"""What the init step begins the run with where the store has none: a manifest alone is enough to start it."""
POD_INDEX_ENV = "CPMBEE_POD_INDEX"
"""The pod's index; each pod starts its share of the init step elsewhere."""
VERSION = 2
"""Of what this file agrees on. Launcher and image with different ones don't work together."""
VERSION_ENV = "CPMBEE_CONTRACT"
"""`VERSION` of the launcher, for the pods to compare with their own."""
LAUNCHER_ENV = "CPMBEE_LAUNCHER_VERSION"
"""Version of the launcher, for words."""

IN_CLUSTER_ENV = "CPMBEE_IN_CLUSTER"
"""Set where the launcher is a pod of the cluster: it reaches the store as the jobs' pods do."""

METRICS_PORT_ENV = "CPMBEE_METRICS_PORT"
"""The port on which the training container serves its metrics; nowhere where it is empty or missing."""
METRICS_PORT = 9464
"""The one in a manifest."""
METRICS_PORT_NAME = "metrics"

CPUS_ENV = "CPMBEE_CPUS"
"""The container's limit of CPUs: the kernel shows a container all of its node's."""

SPEC = "spec.yaml"
DATA = "data.json"
"""The data that the run is bound to: listing and prepared digests of both splits, vocabulary."""
STATUS = "status.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LATEST = "checkpoints/LATEST"
BEST = "delta/BEST"
LAST = "delta/LAST"

REQUEST = "request.json"
"""What an inference was asked for; `InferenceRequest`."""
SCORES = "scores.json"
PER_EXAMPLE = "per-example.jsonl"
ROWS = "rows.jsonl"

InferenceCommand = Literal["evaluate", "predict"]
INFERENCE_RESULTS: dict[InferenceCommand, str] = {"evaluate": SCORES, "predict": ROWS}
"""What each writes last."""


MANAGED_BY = {"app.kubernetes.io/managed-by": "cpmbee-job"}
"""Label of every object of ours on a cluster."""
NAME_LABEL = "cpmbee-job/name"
RUN_LABEL = "cpmbee-job/run"
COMMAND_LABEL = "cpmbee-job/command"
"""Of a Job and its pods: which verb they do; pods that train have none."""
URL_ANNOTATION = "cpmbee-job/url"
"""Where the run of a PyTorchJob, or what a Job makes, lies in the store."""
PREPARE_CONTAINER = "prepare"
TRAIN_CONTAINER = "pytorch"
"""The operator asks for this name."""


def job_name(name: str, run_id: str) -> str:
    """Name of the run's PyTorchJob. With the operator's `-worker-9999` behind it, it is a pod's and a Service's name,
    so it starts with a letter and has at most 51 characters; the labels have the names in full. An id that does not
    fit into such a name is there as its digest."""
    prefix = name if name[0].isalpha() else f"j{name}"
    suffix = run_id if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?", run_id) else digest(run_id)[:12]
    return f"{prefix[: 50 - len(suffix)].rstrip('-')}-{suffix}"


NOT_JOBS = {"inference", "prepared", "uploads"}
"""Folders of an output that are no job's."""


def run_url(output: str, name: str, run_id: str) -> str:
    return f"{output.rstrip('/')}/{name}/{run_id}"


def run_name(url: str) -> str:
    """`<name>/<run id>` of the run at `url`."""
    return "/".join(url.rsplit("/", 2)[1:])


def uploads_url(output: str) -> str:
    return f"{output.rstrip('/')}/uploads"


def prepared_url(output: str, digest: str) -> str:
    return f"{output.rstrip('/')}/prepared/{digest}"


def inference_url(output: str, digest: str) -> str:
    return f"{output.rstrip('/')}/inference/{digest}"


def inference_id(command: InferenceCommand, digest: str) -> str:
    """What stands in the place of a run's id in the names of a Job and in its labels."""
    return f"{command}-{digest[:12]}"


def prepare_command(url: str) -> list[str]:
    """The init step of the run at `url`, in a pod and on this machine alike."""
    return ["-m", "cpmbee_job.data", url]


def train_command(url: str) -> list[str]:
    """The training container's entrypoint, likewise."""
    return ["-m", "cpmbee_job.train", url]


def inference_command(
    command: InferenceCommand, url: str, model: str, delta: str | None, data: str, flags: Sequence[str]
) -> list[str]:
    """The verb in a pod, which leaves its results in the folder at `url`. `flags`: those that decide them."""
    words = ["-m", "cpmbee_job.cli", command, "--model", model, *(["--delta", delta] if delta else []), *flags]
    if command == "predict":
        return [*words, "--input", data, "--output", f"{url}/{ROWS}"]
    return [*words, "--data", data, "--per-example", f"{url}/{PER_EXAMPLE}", "--output", f"{url}/{SCORES}"]


def attempt_key(attempt: int) -> str:
    return f"attempts/{attempt:05d}.json"


def begin_key(attempt: int) -> str:
    return f"attempts/{attempt:05d}.begin.json"


def failure_key(attempt: int) -> str:
    return f"attempts/{attempt:05d}.failure.json"


def state_key(step: int, attempt: int) -> str:
    return f"checkpoints/{step}/state.{attempt}.safetensors"


def manifest_key(step: int, attempt: int) -> str:
    return f"checkpoints/{step}/manifest.{attempt}.json"


def rows_key(step: int, attempt: int) -> str:
    return f"rows/{step}.{attempt}.jsonl"


def delta_prefix(step: int, attempt: int) -> str:
    return f"delta/{step}.{attempt}/"


DELTA_MANIFEST = "manifest.json"
"""In a delta's folder; written after all that it names."""
RECORDED_SCORES = "scores/"
"""In a delta's folder."""


def log_key(pod: str, attempt: int) -> str:
    return f"logs/{pod}/{attempt:05d}.log"


def to_json(record: Any) -> bytes:
    """One JSON document, as every record is written: UTF-8, readable, newline at the end."""
    return (json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def from_json(data: bytes | str) -> dict[str, Any]:
    """The object in a JSON document, whoever has written it. Raises `ValueError` for anything else, endless nesting and
    numbers of thousands of digits included."""
    document = parse_json(data, allow_inf_nan=False)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def digest(value: Any) -> str:
    """Hex digest (32 digits) of a JSON value; equal values have equal digests whatever the order of their keys."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def problem(error: ValueError) -> str:
    """What is wrong with a document and where, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))


Number = Annotated[int, Field(ge=0, lt=1 << 63)]


def _is_file_name(name: str) -> str:
    if name in ("", ".", "..", "manifest.json") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} can't be one of its files")
    return name


class Record(BaseModel):
    """Base of what is read back from the store. Keys that it does not name may be there too: a newer release's, say."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: bytes, place: str) -> Self:
        """Raises `DamagedError`, naming `place` and the field, for what is no such record."""
        try:
            from_json(data)  # a key that it does not name may hold what is no JSON: `Infinity`, say
            return cls.model_validate_json(data)
        except ValueError as error:
            raise DamagedError(f"{place}: {problem(error)}") from error


class CheckpointPointer(Record):
    """`LATEST`, and what names a checkpoint elsewhere."""

    step: Number
    attempt: Number


class DeltaPointer(Record):
    """`BEST` and `LAST`; where a delta was fetched, or promoted to, too."""

    prefix: Annotated[str, Field(pattern=r"^delta/([0-9a-f]+(\.[0-9]+)?/)?$")]


class DeltaFile(Record):
    size: Number
    sha256: str


class DeltaManifest(Record):
    files: dict[Annotated[str, AfterValidator(_is_file_name)], DeltaFile]


class AttemptRecord(Record):
    started_unix: float


class ResultRecord(Record):
    state: str
    ended_at: str
    exit_code: Number | None = None


class PreparedSet(Record):
    prepared: str
    rows: Number
    weight: float | None


class PreparedSplit(Record):
    rows: Number
    sets: Annotated[tuple[PreparedSet, ...], Field(min_length=1)]


class DataRecord(Record):
    """As far as others than its writer and training read it."""

    vocabulary: dict[str, Number]
    train: PreparedSplit
    eval: PreparedSplit | None


class InferenceRequest(Record):
    """As far as others than its writer read it."""

    command: InferenceCommand
    model: str
    delta: str | None
    data: str


def pod_name() -> str:
    """Name of the pod (of the machine, outside a cluster), for records and log keys."""
    return os.environ.get("POD_NAME") or os.uname().nodename
