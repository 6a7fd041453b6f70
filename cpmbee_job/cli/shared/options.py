"""Options that several commands share, one by one or as groups (`shared.commands`)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpmbee_job.cli.shared.commands import argument, flag, option
from cpmbee_job.errors import NotFoundError, PreflightError, SpecError, StoreError, UsageError
from cpmbee_job.process import contract

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.run.run import Run
    from cpmbee_job.spec import JobSpec, StorageSpec

CLUSTER = "Cluster"
STORE = "Object store"
OUTPUT = "Output"
WAITING = "Waiting"
PIPELINE = "CI pipeline"


def seconds(text: str) -> float:
    """Parse a duration: a number of seconds, or 90s, 30m, 2h, 1h30m, 7d."""
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if parts is None or not any(parts.groups()):
        raise typer.BadParameter(f"{text!r} is not a duration such as 90, 90s, 30m, 2h, 1h30m or 7d")
    days, hours, minutes, rest = (float(part or 0) for part in parts.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


def duration_option(names: str, text: str, panel: str | None = None) -> Any:
    """An option whose value is a duration, in seconds."""
    return option(names, "DURATION", text, panel, parser=seconds)


AsJson = Annotated[bool, flag("--json", "Print one JSON document on stdout, and nothing else.", OUTPUT)]
Overrides = Annotated[list[str] | None, option("--set", "KEY=VALUE", "Set a spec field: train.lr=2e-4. Repeatable.")]
RunReference = Annotated[str, argument("RUN", "The run: NAME/RUN_ID, or the URL of its folder.")]
Namespace = Annotated[str | None, option("--namespace, -n", "NAME", "Default: the job's, or the context's.", CLUSTER)]
Timeout = Annotated[float | None, duration_option("--timeout", "Stop waiting after this time; exit code 101.", WAITING)]
SummaryFile = Annotated[
    Path | None, option("--summary", "FILE", "Append Markdown to this file, such as $GITHUB_STEP_SUMMARY.", PIPELINE)
]
Vocabulary = Annotated[Path, option("--vocab", "FILE", "The model's vocab.txt.")]
Format = Annotated[str, option("--format", "FORMAT", "Format of records: bee (examples), ccpm, or MODULE:FUNCTION.")]
Strict = Annotated[bool, flag("--strict", "Reject input that would be auto-corrected, such as a number as text.")]


@contextmanager
def format_as_option() -> Iterator[None]:
    """Raise an unknown format as the `UsageError` that it is on the command line."""
    try:
        yield
    except SpecError as error:
        raise UsageError(f"--format: {error.message}", hint=error.hint) from error


@dataclass(frozen=True)
class JobOptions:
    """A job spec and its overrides."""

    job: Annotated[Path, argument("JOB.yaml", "The job spec.")]
    overrides: Overrides = None

    def load(self) -> "JobSpec":
        """Raises `SpecError`."""
        from cpmbee_job.spec import load_spec

        return load_spec(self.job, self.overrides or ())


@dataclass(frozen=True)
class StoreOptions:
    """How to reach the object store."""

    endpoint_url: Annotated[
        str | None, option("--endpoint-url", "URL", "S3 endpoint. Default: AWS.", STORE, envvar="AWS_ENDPOINT_URL")
    ] = None
    path_style: Annotated[
        bool | None,
        flag("--path-style/--host-style", "Where S3 URLs name the bucket. Default: path with an endpoint.", STORE),
    ] = None

    def storage(self) -> "StorageSpec":
        """The settings of `CPMBEE_STORAGE` (set in pods), overridden by these options."""
        from cpmbee_job.spec import StorageSpec

        text = os.environ.get(contract.STORAGE_ENV, "{}")
        try:
            known = StorageSpec.model_validate_json(text)
        except ValueError as error:
            raise UsageError(
                f"{contract.STORAGE_ENV}: must be a spec's storage section as JSON", hint=str(error)
            ) from error
        given = {"endpoint_url": self.endpoint_url, "path_style": self.path_style}
        return known.model_copy(update={key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class ClusterOptions:
    """A cluster and a namespace in it."""

    context: Annotated[str | None, option("--context", "NAME", "Kubeconfig context. Default: current.", CLUSTER)] = None
    namespace: Namespace = None

    def connect(self, namespace: str | None = None) -> "Cluster":
        """Connect to the cluster. `namespace` is the default, where the option is not given.

        Raises `PreflightError` if no cluster is configured.
        """
        from cpmbee_job.launch.kube.api import connect  # its import takes most of a second

        return connect(self.context, self.namespace or namespace)


@dataclass(frozen=True)
class RunOptions(StoreOptions, ClusterOptions):
    """Where to look for runs: in a cluster, in the object store, or in both."""

    output: Annotated[
        str | None,
        option("--output", "URL", "Output folder, to find runs without a PyTorchJob.", STORE, envvar="CPMBEE_OUTPUT"),
    ] = None

    def connect_if_needed(self, run: str | None = None) -> "Cluster | None":
        """Connect to the cluster. None if none is configured and the output or the run's URL is enough."""
        from cpmbee_job.launch.runs.find import as_url

        try:
            return self.connect()
        except PreflightError:
            optional = self.output is not None or (run is not None and as_url(run) is not None)
            if optional and self.context is None and self.namespace is None:
                return None
            raise

    def find(self, run: str, cluster: "Cluster | None" = None) -> "tuple[FoundRun, Cluster | None]":
        """Find a run, and the cluster in the run's namespace; None where none is configured or required."""
        from cpmbee_job.launch.runs.find import find_at_home

        cluster = self.connect_if_needed(run) if cluster is None else cluster
        connect = replace(self, namespace=None).connect
        return find_at_home(run, cluster, connect, output=self.output, storage=self.storage())

    def find_on_cluster(self, run: str) -> "tuple[FoundRun, Cluster]":
        """Find a run, and the cluster in `--namespace`, else in the namespace that the run was submitted to.

        Raises `UsageError` for a local run.
        """
        from cpmbee_job.launch.runs.find import find_run

        cluster = self.connect()
        if self.namespace is not None:
            found = find_run(run, cluster, output=self.output, storage=self.storage())
        else:
            found, home = self.find(run, cluster)
            cluster = home or cluster
        if found.url and not found.url.startswith("s3://"):
            raise UsageError(
                f"{found.url}: a local run, not one on a cluster",
                hint=f"stop its command with Ctrl-C; resume it with `cpmbee-job local --run-id {found.run_id}`",
            )
        return found, cluster

    def open(self, run: str) -> "Run":
        """Open a run in the object store. Raises `NotFoundError` if nothing is stored of it."""
        found, _ = self.find(run)
        if found.store_problem is not None:
            raise StoreError(found.store_problem)
        if found.run is None:
            raise NotFoundError(f"{found.url}: no run is stored there (yet)")
        return found.run


@dataclass(frozen=True)
class WaitOptions:
    """Whether to stay with a run that was just started, and for how long."""

    wait: Annotated[bool, flag("--wait", "Wait until the run ends, and exit with its exit code.", WAITING)] = False
    follow: Annotated[bool, flag("--follow", "Like --wait, and show the pods' logs.", WAITING)] = False
    timeout: Timeout = None

    @property
    def enabled(self) -> bool:
        return self.wait or self.follow

    def check(self) -> None:
        """Raises `UsageError` for a timeout without anything to wait for."""
        if self.timeout is not None and not self.enabled:
            raise UsageError("--timeout requires --wait or --follow")


@dataclass(frozen=True)
class PipelineOptions:
    """What a CI pipeline leaves behind, and what it does when it is cancelled."""

    cancel_on_signal: Annotated[
        bool, flag("--cancel-on-signal", "Cancel the run on SIGINT and SIGTERM; exit code 103.", PIPELINE)
    ] = False
    summary: SummaryFile = None
    junit: Annotated[Path | None, option("--junit", "FILE", "File for the outcome as JUnit XML.", PIPELINE)] = None
