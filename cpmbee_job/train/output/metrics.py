"""What a training pod tells Prometheus.

Workers come and go, so their values lie in files of the container (prometheus_client's multiprocess mode), and the
entrypoint, which outlives them, serves those beside its own. While torchrun restarts, counters stand still and gauges
keep what a worker said last; that is why the moments of progress are served, and never an age.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from cpmbee_job.process import contract

WORKERS = CollectorRegistry()
"""The metrics that workers set."""
ENTRYPOINT = CollectorRegistry()
"""Those of the entrypoint."""
RUN = "run"
"""Label of all: `<name>/<run id>`. Pod and namespace are for Prometheus to add, which knows whom it asks."""


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    """Of several workers' values the newest counts."""
    return Gauge(name, documentation, [RUN, *labels], registry=WORKERS, multiprocess_mode="mostrecent")


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(name, documentation, [RUN, *labels], registry=WORKERS)


STEP = _gauge("cpmbee_step", "Steps of the run that are done.")
PLANNED_STEPS = _gauge("cpmbee_planned_steps", "Steps that the run will have if nothing stops it early.")
LOSS = _gauge("cpmbee_loss", "Mean loss over the target tokens of the last step, in nats.")
EVAL_LOSS = _gauge("cpmbee_eval_loss", "Mean loss over the target tokens of the last evaluation, in nats.")
TOKENS = _counter("cpmbee_tokens_total", "Tokens trained on by all processes of the world together.")
PROGRESS = _gauge("cpmbee_progress_timestamp_seconds", "When the last step or evaluation was done, in Unix time.")
ATTEMPT = _gauge("cpmbee_attempt", "Number of the run's newest attempt: how often its world has been formed.")
WORLD_SIZE = _gauge("cpmbee_world_size", "Processes that train together.")
CHECKPOINT = _gauge("cpmbee_checkpoint_timestamp_seconds", "When the newest checkpoint was in the store, in Unix time.")
CHECKPOINT_DURATION = _gauge(
    "cpmbee_checkpoint_duration_seconds",
    "Seconds from the step of the newest checkpoint to the moment it was in the store. Training goes on meanwhile.",
)
GPU_PEAK = _gauge("cpmbee_gpu_memory_peak_bytes", "Most that tensors have taken on the GPU `gpu`.", "gpu")
GPU_RESERVED = _gauge("cpmbee_gpu_memory_reserved_bytes", "Held by torch on the GPU `gpu`.", "gpu")
GPU_SIZE = _gauge("cpmbee_gpu_memory_size_bytes", "Memory of the GPU `gpu`.", "gpu")
S3_SENT = _counter("cpmbee_s3_sent_bytes_total", "Bodies of requests to S3, repeated ones too.")
S3_RECEIVED = _counter("cpmbee_s3_received_bytes_total", "Bodies of answers from S3.")
S3_ERRORS = _counter(
    "cpmbee_s3_errors_total",
    "Requests to S3 that failed, also where a repetition mended it, by `reason`: an HTTP status, `no answer`, "
    "`broken body`.",
    "reason",
)

START = Gauge(
    "cpmbee_entrypoint_start_timestamp_seconds",
    "When the entrypoint of the pod began, in Unix time.",
    [RUN],
    registry=ENTRYPOINT,
)
TORCHRUN_STARTS = Counter(
    "cpmbee_torchrun_starts_total", "Starts of torchrun by the pod's entrypoint.", [RUN], registry=ENTRYPOINT
)


class S3Traffic:
    """Counts what a worker moves: a `store.traffic.Observer`."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._sent, self._received = S3_SENT.labels(run), S3_RECEIVED.labels(run)

    def sent(self, num_bytes: int) -> None:
        self._sent.inc(num_bytes)

    def received(self, num_bytes: int) -> None:
        self._received.inc(num_bytes)

    def failed(self, reason: str) -> None:
        S3_ERRORS.labels(self._run, reason).inc()


def checkpoint_written(run: str, stepped_at: float) -> None:
    """A checkpoint is in the store, of the step that was done at `stepped_at` (Unix time)."""
    CHECKPOINT.labels(run).set_to_current_time()
    CHECKPOINT_DURATION.labels(run).set(time.time() - stepped_at)


@contextmanager
def served(run: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the metrics of this pod on the port that the environment names, where it names one (0: any that is free,
    which is said). Yields what workers need in their environment. A port that can't be had is no reason not to train.
    """
    port = os.environ.get(contract.METRICS_PORT_ENV)
    if not port:
        yield {}
        return
    disable_created_metrics()
    START.labels(run).set_to_current_time()
    TORCHRUN_STARTS.labels(run)  # from 0
    folder = folder / "metrics"
    folder.mkdir()
    registry = CollectorRegistry()
    registry.register(ENTRYPOINT)
    MultiProcessCollector(registry, str(folder))
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 (Prometheus comes from elsewhere)
    try:
        server, thread = start_http_server(int(port), everywhere, registry)
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"no metrics on port {port} ({contract.METRICS_PORT_ENV}): {error}\n")
        yield {}
        return
    if not int(port):
        sys.stderr.write(f"metrics on port {server.server_port}\n")
    try:
        yield {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
