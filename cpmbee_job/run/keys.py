"""Keys and URLs of the objects of a run and of an output.

<output>/<name>/<run>/
    spec.yaml  data.json  status.json  metrics.jsonl  result.json
    attempts/<attempt>.json                              which pod started when; numbered by conditional put
    attempts/<attempt>.begin.json                        the checkpoint from which it continued
    attempts/<attempt>.failure.json                      why it failed
    checkpoints/<step>/state.<attempt>.safetensors, manifest.<attempt>.json     checkpoints/LATEST
    rows/<step>.<attempt>.jsonl                          packed rows trained on since the previous checkpoint
    delta/<step>.<attempt>/  delta/BEST  delta/LAST
    delta/<step>.<attempt>/scores/<eval digest>.json     results of `evaluate --record`
    tensorboard/  logs/<pod>/<attempt>.log
<output>/prepared/<digest>/part-00000.arrow ...  index.json
<output>/uploads/<digest of the content>/...             files of the launcher's machine
<output>/inference/<digest>/request.json  scores.json, per-example.jsonl or rows.jsonl     `--on-cluster`
<folder of promoted deltas>/
    delta/<digest>/  delta/BEST                          as in a run's folder, so that either can be named
"""

from typing import Literal

SPEC = "spec.yaml"
DATA = "data.json"
"""The data to which the run is bound: listing and prepared digests of both splits, vocabulary."""
STATUS = "status.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LATEST = "checkpoints/LATEST"
BEST = "delta/BEST"
LAST = "delta/LAST"
DELTA_MANIFEST = "manifest.json"
"""In a delta's folder; written after all files that it names."""
DELTA_TENSORS = "delta.safetensors"
RECORDED_SCORES = "scores/"
"""In a delta's folder."""
REQUEST = "request.json"
"""What an inference in a pod is asked to do."""
SCORES = "scores.json"
PER_EXAMPLE = "per-example.jsonl"
ROWS = "rows.jsonl"
InferenceCommand = Literal["evaluate", "predict"]
INFERENCE_RESULTS: dict[InferenceCommand, str] = {"evaluate": SCORES, "predict": ROWS}
"""The object that each command writes last."""


def run_url(output: str, name: str, run_id: str) -> str:
    return f"{output.rstrip('/')}/{name}/{run_id}"


def run_name(url: str) -> str:
    """Return `<name>/<run id>` of the run at `url`."""
    return "/".join(url.rsplit("/", 2)[1:])


def uploads_url(output: str) -> str:
    return f"{output.rstrip('/')}/uploads"


def prepared_url(output: str, digest: str) -> str:
    return f"{output.rstrip('/')}/prepared/{digest}"


def inference_url(output: str, digest: str) -> str:
    return f"{output.rstrip('/')}/inference/{digest}"


def inference_id(command: InferenceCommand, digest: str) -> str:
    """Return what replaces the run id in the name and the labels of an inference's Job."""
    return f"{command}-{digest[:12]}"


def attempt_key(attempt: int, kind: Literal["", ".begin", ".failure"] = "") -> str:
    return f"attempts/{attempt:05d}{kind}.json"


def state_key(step: int, attempt: int) -> str:
    return f"checkpoints/{step}/state.{attempt}.safetensors"


def manifest_key(step: int, attempt: int) -> str:
    return f"checkpoints/{step}/manifest.{attempt}.json"


def rows_key(step: int, attempt: int) -> str:
    return f"rows/{step}.{attempt}.jsonl"


def delta_prefix(step: int, attempt: int) -> str:
    return f"delta/{step}.{attempt}/"


def log_key(pod: str, attempt: int) -> str:
    return f"logs/{pod}/{attempt:05d}.log"
