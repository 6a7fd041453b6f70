"""Check what a job requires before anything runs: this machine, the cluster, the object store, and the job's spec."""

import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import cpmbee_job
from cpmbee_job.errors import CpmbeeError
from cpmbee_job.launch.checks import cluster_checks, job_checks, store_checks
from cpmbee_job.launch.checks.check_result import Check, CheckResult, from_error, run_checks
from cpmbee_job.launch.checks.gpu_memory import check_gpu_memory
from cpmbee_job.launch.checks.server_check import rendered, template_of
from cpmbee_job.launch.kube.protocol import Cluster, Object
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.spec.cluster import WorkersSpec
from cpmbee_job.store.urls import open_store


def examine_all(
    connect: Callable[[], Cluster], spec: JobSpec | None, output: str | None, storage: StorageSpec
) -> Iterator[CheckResult]:
    """Check the cluster; with `output` the object store; with `spec` everything that the job requires.

    A failed check does not prevent others, except that an unreachable cluster is not checked further.
    """
    store_results = run_checks(_store_checks(spec, output, storage))  # run while the others are yielded
    yield CheckResult("this machine", "ok", f"cpmbee-job {cpmbee_job.__version__}, Python {platform.python_version()}")
    if spec is not None:
        yield from job_checks.check_image(spec)
        yield from job_checks.check_endpoint(spec)
    yield from _check_cluster(connect, spec)
    yield from store_results


def _check_cluster(connect: Callable[[], Cluster], spec: JobSpec | None) -> Iterator[CheckResult]:
    reached: list[Cluster] = []

    def reach() -> Iterator[CheckResult]:
        cluster = connect()
        yield from cluster_checks.check_cluster(cluster)
        reached.append(cluster)

    yield from run_checks({"cluster": reach})
    for cluster in reached:
        manifest = pod = None
        if spec is not None:
            try:
                manifest = rendered(spec, cluster.namespace)
                pod = template_of(manifest)["spec"]
            except CpmbeeError as error:
                yield from_error("job", error)
                with suppress(CpmbeeError):  # what it requests of nodes and quotas does not depend on these two fields
                    complete = spec.with_fields({"image": "image:0", "output": "s3://bucket/runs"})
                    pod = template_of(rendered(complete, cluster.namespace))["spec"]
        yield from run_checks(_cluster_checks(cluster, spec, manifest, pod))


def _cluster_checks(
    cluster: Cluster, spec: JobSpec | None, manifest: Object | None, pod: Object | None
) -> dict[str, Check]:
    workers = WorkersSpec() if spec is None else spec.workers
    queue = None if spec is None else spec.cluster.queue
    checks: dict[str, Check] = {
        "operator": partial(cluster_checks.check_operator, cluster),
        "permissions": partial(cluster_checks.check_permissions, cluster, with_queue=queue is not None),
        "namespace": partial(cluster_checks.check_namespace, cluster),
        "nodes": partial(cluster_checks.check_nodes, cluster, pod, workers.count, workers.gpu_resource),
        "quota": partial(cluster_checks.check_quotas, cluster, pod, workers.count),
        "Kueue": partial(cluster_checks.check_queue, cluster, queue),
    }
    if spec is not None:
        checks["names"] = partial(job_checks.check_names, cluster, spec)
        if spec.workers.gpus:
            checks["GPU memory"] = partial(check_gpu_memory, cluster, spec)
        if manifest is not None:
            checks["job"] = partial(job_checks.check_job, cluster, spec, manifest)
    return checks


def _store_checks(spec: JobSpec | None, output: str | None, storage: StorageSpec) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    if output is not None:
        checks["output"] = lambda: store_checks.check_output(open_store(output, storage))
    if spec is not None:
        checks["model"] = lambda: store_checks.check_model_folder(open_store(spec.model, storage))
        others = {field: url for field, url in spec.inputs.items() if field != "model"}
        checks |= {field: partial(store_checks.check_data, field, url, storage) for field, url in others.items()}
    return checks
