"""Render a job spec as the PyTorchJob that runs it: a pure function of the spec.

Some defaults of the training operator have side effects, so the manifest sets or omits these fields on purpose:

- `nprocPerNode`: its default `auto` starts one process for each CPU core on CPU nodes.
- `cleanPodPolicy`: its default leaves pods behind.
- `metrics`: an empty list creates a HorizontalPodAutoscaler.
- `rdzvConf`: an empty list crashes the operator's reconcile loop.
- `Master` together with `elasticPolicy` creates two worlds.
"""

from collections.abc import Collection

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.manifest.metadata import job_metadata, pod_metadata
from cpmbee_job.launch.manifest.pod_template import pod_template
from cpmbee_job.run import keys
from cpmbee_job.run.identity import spec_digest
from cpmbee_job.spec import JobSpec

MAX_RESTARTS = 100
"""torchrun counts each lost peer as a failure. Permanent failures are recorded by the workers themselves."""
RENDEZVOUS = {
    "join_timeout": 1800,  # seconds until enough pods have joined; some nodes may have to pull a large image
    "last_call_timeout": 5,  # seconds to wait for more pods when enough have joined
    "read_timeout": 600,  # seconds to connect to worker 0, which may still pull its image
}


def render(spec: JobSpec, run_id: str, namespace: str | None = None) -> Object:
    """Return the PyTorchJob of the run `run_id` of `spec`. `namespace` overrides the spec's.

    Raises `SpecError` with the dotted key if the spec cannot run on a cluster.
    """
    require_cluster(spec)
    url = keys.run_url(spec.output, spec.name, run_id)
    of_pods = pod_metadata(spec, run_id, url)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": job_metadata(spec, run_id, of_pods, namespace),
        "spec": {
            "runPolicy": _run_policy(spec),
            "nprocPerNode": str(max(spec.workers.gpus, 1)),
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": spec.workers.min or spec.workers.count,
                "maxReplicas": spec.workers.max or spec.workers.count,
                "maxRestarts": MAX_RESTARTS,
                "rdzvConf": [{"key": key, "value": str(seconds)} for key, seconds in RENDEZVOUS.items()],
            },
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": spec.workers.count,
                    # The only policy of the operator under which a job survives the loss of worker 0.
                    "restartPolicy": "OnFailure",
                    "template": pod_template(spec, of_pods, url),
                }
            },
        },
    }


def default_run_id(spec: JobSpec) -> str:
    """Return the run id for rendering a spec without submitting it."""
    return spec_digest(spec)[:12]


def remarks(spec: JobSpec) -> list[str]:
    """Return warnings about valid settings that are probably a mistake."""
    image, policy = spec.image or "", spec.cluster.image_pull_policy
    _, _, tag = image.rpartition("/")[2].partition(":")
    if image and "@" not in image and tag in ("", "latest") and policy == "IfNotPresent":
        return [
            f"image: {image} does not name a version, and nodes do not pull a newer one (image_pull_policy {policy}), "
            "so pods may run different versions: add a tag or a digest"
        ]
    return []


def require_cluster(spec: JobSpec, uploaded: Collection[str] = ()) -> None:
    """Raise `SpecError` if the spec can run only on this machine. `uploaded`: the keys of inputs to be uploaded."""
    if spec.image is None:
        raise SpecError("image: missing; required on a cluster", hint="build it: `docker build --target train .`")
    for key, place in {**spec.inputs, "output": spec.output}.items():
        if not place.startswith("s3://") and key not in uploaded:
            hint = "pods require an s3:// URL; `submit` uploads local inputs"
            raise SpecError(
                f"{key}: {place} is a local folder, which pods cannot reach",
                hint="use an object store: s3://bucket/folder/" if key == "output" else hint,
            )


def _run_policy(spec: JobSpec) -> Object:
    """Does not set `activeDeadlineSeconds`: the operator checks it only on other events, and counts from the admission
    by Kueue. The trainer enforces `train.deadline`, counted from the first attempt."""
    cluster, workers = spec.cluster, spec.workers
    policy: Object = {
        "cleanPodPolicy": "Running",
        # The operator sums the restarts of all pods, including those of init containers.
        "backoffLimit": cluster.backoff_limit or 3 * (workers.max or workers.count),
    }
    if cluster.ttl is not None:
        policy["ttlSecondsAfterFinished"] = cluster.ttl
    if cluster.queue:
        policy["suspend"] = True
    if cluster.scheduling_policy is not None:
        group = cluster.scheduling_policy
        fields = {
            "queue": group.queue,
            "minAvailable": group.min_available or workers.min or workers.count,
            "priorityClass": group.priority_class,
            "scheduleTimeoutSeconds": group.timeout,
        }
        policy["schedulingPolicy"] = {key: value for key, value in fields.items() if value is not None}
    return policy
