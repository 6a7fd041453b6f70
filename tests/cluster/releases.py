"""A release of the chart, with its inputs in the S3 server of the tests."""

import json
import os
from dataclasses import dataclass
from typing import Any

from cpmbee_job.launch.kube import naming
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store
from tests.cluster.conftest import Laptop, write_rows
from tests.cluster.images import LAUNCHER
from tests.cluster.kubectl import get, kubectl
from tests.helm import CHART, helm

LAUNCHER_IMAGE = os.environ.get("CPMBEE_LAUNCHER_IMAGE", LAUNCHER)
NAME = "rel"
LABEL = f"app.kubernetes.io/instance={NAME}"


@dataclass
class Release:
    """Of the laptop's job, in its namespace."""

    laptop: Laptop

    @property
    def namespace(self) -> str:
        return self.laptop.namespace

    @property
    def store(self) -> Store:
        """Inputs and runs."""
        return open_store(self.laptop.spec["output"], self.storage)

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(endpoint_url=self.laptop.spec["storage"]["launcher_endpoint_url"])

    def upload_inputs(self) -> None:
        """The model and the rows, which specs name by their URL from now on."""
        folder, output = self.laptop.folder, self.laptop.spec["output"]
        for path in [*(folder / "model").iterdir(), *(folder / "raw").iterdir()]:
            self.store.upload(path, f"inputs/{path.relative_to(folder)}")
        self.laptop.spec["model"] = f"{output}/inputs/model/"
        self.laptop.spec["data"] |= {split: f"{output}/inputs/raw/{split}.jsonl" for split in ("train", "eval")}

    def change_rows(self, seed: int) -> None:
        rows = self.laptop.folder / "raw" / "train.jsonl"
        write_rows(rows, 200, seed)
        self.store.upload(rows, "inputs/raw/train.jsonl")

    def values(self, **job: Any) -> dict[str, Any]:
        """One job, the laptop's."""
        return {"image": launcher_image(), "jobs": {"ccpm-like": {"spec": self.laptop.spec, **job}}}

    def helm(self, verb: str, *arguments: str, values: Any = None) -> str:
        done = helm(verb, NAME, *arguments, f"--namespace={self.namespace}", values=values)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, values: Any, verb: str = "install") -> str:
        return self.helm(verb, str(CHART), "--wait", "--timeout=3m", values=values)

    def launchers(self) -> list[dict[str, Any]]:
        """Return the Jobs of the release, oldest first."""
        jobs = get("jobs", "-n", self.namespace, "-l", LABEL)["items"]
        return sorted(jobs, key=lambda job: job["metadata"]["creationTimestamp"])

    def ended(self, condition: str) -> list[str]:
        """Return the names of the launchers that are Complete or Failed."""
        return [job["metadata"]["name"] for job in self.launchers() if is_true(job, condition)]

    def logs(self, job: str) -> str:
        return kubectl("logs", "-n", self.namespace, f"job/{job}")

    def runs(self) -> set[str]:
        """Return the run ids of the existing PyTorchJobs."""
        jobs = get("pytorchjobs", "-n", self.namespace)["items"]
        return {job["metadata"]["labels"][naming.RUN_LABEL] for job in jobs}

    def result(self, run_id: str) -> dict[str, Any]:
        """Empty while the run has none."""
        key = f"{self.laptop.spec['name']}/{run_id}/{keys.RESULT}"
        return {} if self.store.info(key) is None else json.loads(self.store.get(key))


def launcher_image() -> dict[str, str]:
    """As the values name it."""
    repository, _, tag = LAUNCHER_IMAGE.rpartition(":")
    return {"repository": repository, "tag": tag}


def is_true(job: dict[str, Any], condition: str) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(found["type"] == condition and found["status"] == "True" for found in conditions)
