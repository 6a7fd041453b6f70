"""What tests of submitting share: inputs on this machine, a cluster that loses the launcher, looks at what is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Cluster, Object, ignore_warning
from cpmbee_job.launch.lifecycle import submit as lifecycle
from cpmbee_job.launch.lifecycle.submit import Submission, SubmitOptions
from cpmbee_job.launch.local_inputs import Bar, no_bar
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster


def submit(
    spec: JobSpec,
    cluster: Cluster,
    *,
    bar: Bar = no_bar,
    warn: Callable[[str], None] = ignore_warning,
    **options: Any,
) -> Submission:
    """Submit the spec like the command."""
    inputs = lifecycle.require_submittable(spec)
    return lifecycle.submit(spec, inputs, cluster, SubmitOptions(**options, bar=bar, warn=warn))


def make_inputs(folder: Path) -> None:
    (folder / "model").mkdir()
    for name in ("vocab.txt", "config.json", "model.safetensors"):
        (folder / "model" / name).write_text(f"the {name}")
    (folder / "train.jsonl").write_text('{"input": "a", "<ans>": "b"}\n')
    (folder / "eval").mkdir()
    (folder / "eval" / "rows.jsonl").write_text('{"input": "c", "<ans>": "d"}\n')


def make_job_file(folder: Path, bucket: str, storage: StorageSpec) -> Path:
    """A job for a cluster, its inputs beside it."""
    make_inputs(folder)
    path = folder / "job.yaml"
    path.write_text(
        f"name: weather\nmodel: model/\ndata: {{train: train.jsonl}}\noutput: {bucket}/runs/\n"
        f"image: example/train:1\nstorage: {{endpoint_url: {storage.endpoint_url}, secret: s3}}\n"
    )
    return path


def object_keys(url: str, storage: StorageSpec) -> list[str]:
    return [entry.key for entry in open_store(url, storage).list()]


def run_of(submission: Submission, storage: StorageSpec) -> Run:
    return Run.open(submission.found.url, storage)


def jobs(cluster: FakeCluster) -> list[Object]:
    return list(cluster.objects.get(PYTORCHJOBS, {}).values())


class Died(BaseException):
    """The process was killed here."""


class DyingCluster(FakeCluster):
    """The submit dies before it creates the PyTorchJob, or right after."""

    def __init__(self, *, after: bool) -> None:
        super().__init__("team")
        self.after: bool | None = after

    def create(self, kind: str, manifest: Object, **how: Any) -> Object:
        if how.get("dry_run") or self.after is None:
            return super().create(kind, manifest, **how)
        after, self.after = self.after, None
        if after:
            super().create(kind, manifest, **how)
        raise Died
