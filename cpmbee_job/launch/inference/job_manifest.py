"""`evaluate` or `predict` on a cluster: a plain Job, whose pod is a worker's of the spec without its init step."""

from collections.abc import Sequence
from typing import Any

from cpmbee_job.errors import RETRYABLE
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import QUEUE_LABEL, Object
from cpmbee_job.launch.manifest.render import job_metadata, literal, pod_template, require_cluster
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.spec import JobSpec

BACKOFF_LIMIT = 2
FAILURE_POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": naming.TRAIN_CONTAINER,
                "operator": "NotIn",
                "values": [int(code) for code in RETRYABLE],
            },
        },
    ]
}


def render_inference(
    spec: JobSpec, command: keys.InferenceCommand, flags: Sequence[str], digest: str, namespace: str | None = None
) -> Object:
    """The Job that does `command` with the inputs of `spec`: its model, `data.train` as the data, `lora.init_from` as
    the delta. `flags`: the others, as on the command line; `digest`: of all of it.

    Raises `SpecError` with the dotted key for what no cluster can run.
    """
    require_cluster(spec)
    if spec.workers.gpus > 1:  # the verbs are one process
        spec = spec.with_fields({"workers.gpus": 1})
    namespace = namespace or spec.cluster.namespace
    url, run_id = keys.inference_url(spec.output, digest), keys.inference_id(command, digest)
    metadata = job_metadata(spec, run_id, url)
    metadata["labels"][naming.COMMAND_LABEL] = command
    assert isinstance(spec.data.train, str)
    words = inference_command(command, url, spec.model, spec.lora.init_from, spec.data.train, flags)
    job: Object = {"backoffLimit": BACKOFF_LIMIT, "podFailurePolicy": FAILURE_POLICY}
    if spec.cluster.ttl is not None:
        job["ttlSecondsAfterFinished"] = spec.cluster.ttl
    if spec.cluster.queue:
        job["suspend"] = True
    queue = {QUEUE_LABEL: spec.cluster.queue} if spec.cluster.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": naming.job_name(spec.name, run_id),
            **({"namespace": namespace} if namespace else {}),
            "labels": metadata["labels"] | queue,
            "annotations": metadata["annotations"],
        },
        "spec": {**job, "template": _template(pod_template(spec, metadata, url), words)},
    }


def _template(worker: Object, words: Sequence[str]) -> Object:
    """The worker's template with other work to do."""
    pod: Any = worker["spec"]
    before = [one for one in pod.pop("initContainers") if one["name"] != naming.PREPARE_CONTAINER]
    (main,) = pod["containers"]
    # It serves no metrics.
    env = [one for one in main["env"] if one["name"] != contract.METRICS_PORT_ENV]
    ports = [one for one in main.pop("ports", ()) if one["name"] != naming.METRICS_PORT_NAME]
    main |= {"args": [literal(word) for word in words], "env": env} | ({"ports": ports} if ports else {})
    return {
        "metadata": worker["metadata"],
        "spec": {
            **pod,
            "restartPolicy": "Never",
            **({"initContainers": before} if before else {}),
            "containers": [main],
        },
    }


def inference_command(
    command: keys.InferenceCommand, url: str, model: str, delta: str | None, data: str, flags: Sequence[str]
) -> list[str]:
    """The verb in a pod, which leaves its results in the folder at `url`. `flags`: those that decide them."""
    words = ["-m", "cpmbee_job.cli", command, "--model", model, *(["--delta", delta] if delta else []), *flags]
    if command == "predict":
        return [*words, "--input", data, "--output", f"{url}/{keys.ROWS}"]
    return [*words, "--data", data, "--per-example", f"{url}/{keys.PER_EXAMPLE}", "--output", f"{url}/{keys.SCORES}"]
