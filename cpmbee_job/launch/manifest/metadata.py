"""Labels and annotations of a job and its pods."""

from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import QUEUE_LABEL, Object
from cpmbee_job.spec import JobSpec


def pod_metadata(spec: JobSpec, run_id: str, url: str) -> Object:
    """Return the metadata of the pods. `url`: of the run, or of the folder for the results of an inference."""
    labels = {**naming.MANAGED_BY, naming.NAME_LABEL: spec.name, naming.RUN_LABEL: run_id}
    return {
        "labels": {**spec.cluster.labels, **labels},
        "annotations": {**spec.cluster.annotations, naming.URL_ANNOTATION: url},
    }


def job_metadata(spec: JobSpec, run_id: str, of_pods: Object, namespace: str | None) -> Object:
    """Return the metadata of the PyTorchJob or Job whose pods have the metadata `of_pods`. `namespace` overrides the
    spec's."""
    namespace = namespace or spec.cluster.namespace
    queue = {QUEUE_LABEL: spec.cluster.queue} if spec.cluster.queue else {}
    return {
        "name": naming.job_name(spec.name, run_id),
        **({"namespace": namespace} if namespace else {}),
        "labels": of_pods["labels"] | queue,
        "annotations": of_pods["annotations"],
    }
