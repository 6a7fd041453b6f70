"""What a job needs, looked at before anything runs: this machine, the cluster, the store, and the job's spec."""

import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import cpmbee_job
from cpmbee_job.errors import CpmbeeError
from cpmbee_job.launch.checks.cluster_checks import (
    check_cluster,
    check_namespace,
    check_nodes,
    check_operator,
    check_permissions,
    check_queue,
    check_quotas,
)
from cpmbee_job.launch.checks.findings import Check, Finding, as_finding, examine
from cpmbee_job.launch.checks.gpu_memory import check_gpu_memory
from cpmbee_job.launch.checks.job_checks import check_endpoint, check_image, check_job, check_names
from cpmbee_job.launch.checks.server_check import rendered, template_of
from cpmbee_job.launch.checks.store_checks import check_data, check_model_folder, check_output
from cpmbee_job.launch.kube.protocol import Cluster, Object
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.spec.cluster import WorkersSpec
from cpmbee_job.store.urls import open_store


def examine_all(
    connect: Callable[[], Cluster], spec: JobSpec | None, output: str | None, storage: StorageSpec
) -> Iterator[Finding]:
    """All that can be looked at: the cluster; the store where there is an `output`; all of a job where there is a spec.

    No check hides another one; where the cluster can't be reached, the others of it are left out.
    """
    in_store = examine(_store_checks(spec, output, storage))  # meanwhile
    yield Finding("this machine", "ok", f"cpmbee-job {cpmbee_job.__version__}, Python {platform.python_version()}")
    if spec is not None:
        yield from check_image(spec)
        yield from check_endpoint(spec)
    yield from _examine_cluster(connect, spec)
    yield from in_store


def _examine_cluster(connect: Callable[[], Cluster], spec: JobSpec | None) -> Iterator[Finding]:
    reached: list[Cluster] = []

    def reach() -> Iterator[Finding]:
        cluster = connect()
        yield from check_cluster(cluster)
        reached.append(cluster)

    yield from examine({"cluster": reach})
    if not reached:
        return
    cluster, manifest = reached[0], None
    pod = None
    if spec is not None:
        try:
            manifest = rendered(spec, cluster.namespace)
            pod = template_of(manifest)["spec"]
        except CpmbeeError as error:
            yield as_finding("job", error)
            # what it asks nodes and quotas for is known all the same, as a rule
            with suppress(CpmbeeError):
                stand_in = spec.with_fields({"image": "image:0", "output": "s3://bucket/runs"})
                pod = template_of(rendered(stand_in, cluster.namespace))["spec"]
    yield from examine(_cluster_checks(cluster, spec, manifest, pod))


def _cluster_checks(
    cluster: Cluster, spec: JobSpec | None, manifest: Object | None, pod: Object | None
) -> dict[str, Check]:
    workers = WorkersSpec() if spec is None else spec.workers
    queue = None if spec is None else spec.cluster.queue
    checks: dict[str, Check] = {
        "operator": partial(check_operator, cluster),
        "permissions": partial(check_permissions, cluster, with_queue=queue is not None),
        "namespace": partial(check_namespace, cluster),
        "nodes": partial(check_nodes, cluster, pod, workers.count, workers.gpu_resource),
        "quota": partial(check_quotas, cluster, pod, workers.count),
        "Kueue": partial(check_queue, cluster, queue),
    }
    if spec is not None:
        checks["names"] = partial(check_names, cluster, spec)
    if spec is not None and spec.workers.gpus:
        checks["GPU memory"] = partial(check_gpu_memory, cluster, spec)
    if spec is not None and manifest is not None:
        checks["job"] = partial(check_job, cluster, spec, manifest)
    return checks


def _store_checks(spec: JobSpec | None, output: str | None, storage: StorageSpec) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    if output is not None:
        checks["output"] = lambda: check_output(open_store(output, storage))
    if spec is not None:
        checks["model"] = lambda: check_model_folder(open_store(spec.model, storage))
        others = {field: url for field, url in spec.inputs.items() if field != "model"}
        checks |= {field: partial(check_data, field, url, storage) for field, url in others.items()}
    return checks
