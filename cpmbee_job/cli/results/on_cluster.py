"""What `evaluate` and `predict` do with --on-cluster: a pod does the work, this command waits for what it leaves.

Ctrl-C ends the waiting with 130; the pod goes on.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from cpmbee_job.cli.cluster.attach import printer
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import CLUSTER, JobClusterOptions, Timeout
from cpmbee_job.errors import ExitCode, NotFoundError, UsageError
from cpmbee_job.run import keys

if TYPE_CHECKING:
    from cpmbee_job.launch.inference.requests import Inference
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.spec import JobSpec, StorageSpec
    from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class OnClusterOptions(JobClusterOptions):
    """Whether a pod does the work, and where."""

    on_cluster: Annotated[
        bool,
        flag(
            "--on-cluster",
            "Run in a pod. Image, resources and object store are those of --job, else of the run that --delta "
            "names. Local inputs are uploaded.",
            CLUSTER,
        ),
    ] = False
    job: Annotated[
        Path | None, option("--job", "JOB.yaml", "With --on-cluster: the job spec to take them from.", CLUSTER)
    ] = None
    timeout: Timeout = None

    def check(self) -> Self | None:
        """None without --on-cluster. Raises `UsageError` for options that require it."""
        if self.on_cluster:
            return self
        given = {"--job": self.job, "--timeout": self.timeout, "--context": self.context, "--namespace": self.namespace}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} requires --on-cluster")
        return None

    def ask(
        self,
        command: keys.InferenceCommand,
        model: str,
        delta: str | None,
        data: str,
        flags: Mapping[str, str | float],
        settings: "StorageSpec",
    ) -> "Store":
        """The folder with the results, when they are there."""
        from cpmbee_job.launch.inference.requests import Question, begin
        from cpmbee_job.spec import load_spec

        spec = load_spec(self.job) if self.job is not None else _spec_of_run(delta, settings)
        given = {key: getattr(settings, key) for key in settings.model_fields_set}
        cluster = self.connect(spec.cluster.namespace)
        asked = begin(
            spec,
            Question(command, model, delta, data, tuple(f"{flag}={value}" for flag, value in flags.items())),
            cluster,
            spec.storage.seen_by_launcher().model_copy(update=given),
            bar=console.byte_bar,
            warn=console.warn,
        )
        console.say(f"{asked.found.url}: {asked.why}")
        if not asked.done:
            console.say(f"Job {asked.found.job_name} in namespace {cluster.namespace}")
            with _interruptible(asked, cluster):
                _wait(asked, keys.INFERENCE_RESULTS[command], cluster, self.timeout)
        return asked.store


def _spec_of_run(delta: str | None, settings: "StorageSpec") -> "JobSpec":
    from cpmbee_job.run.run import Run

    hint = "--job job.yaml says so; or let --delta be the s3:// URL of a run's folder"
    if delta is None or not delta.startswith("s3://"):
        raise UsageError("--on-cluster: in which image, with how much memory, by which store?", hint=hint)
    try:
        return Run.open(re.sub(r"/delta/[^/]+/?$", "", delta), settings).spec
    except NotFoundError as error:
        raise UsageError(f"--on-cluster: --delta: {error.message}", hint=hint) from error


def _wait(asked: "Inference", key: str, cluster: "Cluster", timeout: float | None) -> None:
    """Show on stderr what the pod says, and what is in its way."""
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.following import follow_logs
    from cpmbee_job.launch.follow.logs import Choice
    from cpmbee_job.launch.inference.results import wait_for_result
    from cpmbee_job.launch.kube import naming

    found = asked.found
    news = _news(found.job_name)
    waiting = begin(lambda: wait_for_result(found, asked.store, key, cluster, on_words=news, timeout=timeout))
    show = printer(console.stderr, timestamps=False)
    choice = Choice(containers=(naming.TRAIN_CONTAINER,))
    try:
        for line in follow_logs(found, cluster, choice, ended=waiting.done, on_words=console.say):
            show(line)
    except NotFoundError:  # it has ended before the log could be read
        pass
    waiting.result()


def _news(name: str) -> Callable[[str], None]:
    """Says what differs from what was said before in more than numbers."""
    last = ""

    def tell(words: str) -> None:
        nonlocal last
        if (kind := re.sub(r"\d+", "#", words)) != last:
            last = kind
            console.say(f"{name}: {console.printable(words)}")

    return tell


@contextmanager
def _interruptible(asked: "Inference", cluster: "Cluster") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        name = asked.found.job_name
        console.say(
            f"{name} goes on; the same command waits for it again, `kubectl delete job {name} -n {cluster.namespace}` "
            "stops it"
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
