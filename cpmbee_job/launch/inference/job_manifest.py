"""Render `evaluate` or `predict` as a Job. Its pod is a worker's of the spec, without the init container."""

from collections.abc import Sequence
from typing import Any

from cpmbee_job.errors import RETRYABLE
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.manifest.metadata import job_metadata, pod_metadata
from cpmbee_job.launch.manifest.pod_template import literal, pod_template
from cpmbee_job.launch.manifest.render import require_cluster
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
    """Return the Job that runs `command` with the inputs of `spec`: `model`, `data.train` as the data, and
    `lora.init_from` as the delta. `flags`: the other command-line flags; `digest`: of the whole request.

    Raises `SpecError` with the dotted key if the spec cannot run on a cluster.
    """
    require_cluster(spec)
    if spec.workers.gpus > 1:  # the commands run in one process
        spec = spec.with_fields({"workers.gpus": 1})
    url, run_id = keys.inference_url(spec.output, digest), keys.inference_id(command, digest)
    of_pod = pod_metadata(spec, run_id, url)
    of_pod["labels"][naming.COMMAND_LABEL] = command
    job: Object = {"backoffLimit": BACKOFF_LIMIT, "podFailurePolicy": FAILURE_POLICY}
    if spec.cluster.ttl is not None:
        job["ttlSecondsAfterFinished"] = spec.cluster.ttl
    if spec.cluster.queue:
        job["suspend"] = True
    template = _replace_work(pod_template(spec, of_pod, url), _arguments(command, url, spec, flags))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": job_metadata(spec, run_id, of_pod, namespace),
        "spec": {**job, "template": template},
    }


def _replace_work(worker: Object, arguments: Sequence[str]) -> Object:
    """Return the worker's template without the init container and the metrics port, and with other arguments."""
    pod: Any = worker["spec"]
    sidecars = [one for one in pod.pop("initContainers") if one["name"] != naming.PREPARE_CONTAINER]
    (main,) = pod["containers"]
    env = [one for one in main["env"] if one["name"] != contract.METRICS_PORT_ENV]
    ports = [one for one in main.pop("ports", ()) if one["name"] != naming.METRICS_PORT_NAME]
    main |= {"args": [literal(one) for one in arguments], "env": env} | ({"ports": ports} if ports else {})
    return {
        "metadata": worker["metadata"],
        "spec": {
            **pod,
            "restartPolicy": "Never",
            **({"initContainers": sidecars} if sidecars else {}),
            "containers": [main],
        },
    }


def _arguments(command: keys.InferenceCommand, url: str, spec: JobSpec, flags: Sequence[str]) -> list[str]:
    """The command line in the pod, which writes the results to the folder at `url`."""
    data, delta = spec.data.train, spec.lora.init_from
    assert isinstance(data, str)
    arguments = ["-m", "cpmbee_job.cli", command, "--model", spec.model, *(["--delta", delta] if delta else []), *flags]
    if command == "predict":
        return [*arguments, "--input", data, "--output", f"{url}/{keys.ROWS}"]
    results = ["--per-example", f"{url}/{keys.PER_EXAMPLE}", "--output", f"{url}/{keys.SCORES}"]
    return [*arguments, "--data", data, *results]
