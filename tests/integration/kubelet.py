"""Run the containers of an in-memory cluster's PyTorchJobs as local processes."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import Object
from tests.fake_cluster import FakeCluster
from tests.integration.submitting import jobs
from tests.processes import run_python


@contextmanager
def kubelet(cluster: FakeCluster) -> Iterator[list[str]]:
    """Until the block ends, each PyTorchJob of the cluster has its init container and one worker run, one job after the
    other. Gives the names of those that were."""
    done: list[str] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.1):
            for job in jobs(cluster):
                name = job["metadata"]["name"]
                if name not in done:
                    done.append(name)
                    _run(job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


def _run(pod: dict[str, Any]) -> None:
    containers: list[Object] = [*pod["initContainers"], *pod["containers"]]
    for container in containers:
        environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        for name in ("HOME", "CPMBEE_CACHE"):  # folders of the pod's own
            environment.pop(name, None)
        arguments = [argument.replace("$$", "$") for argument in container["args"]]
        if container["name"] == naming.TRAIN_CONTAINER:
            arguments.append("--processes=1")
        run_python(*arguments, env={**os.environ, **environment})
