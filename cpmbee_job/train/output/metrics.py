"""The Prometheus metrics of a training pod.

Workers write their values to files (prometheus_client's multiprocess mode), and the entrypoint, which outlives them,
serves those together with its own. While torchrun restarts, counters and gauges keep their last values; therefore the
time of the last progress is exported as a timestamp, not as an age.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from cpmbee_job.process import contract

WORKERS = CollectorRegistry()
"""Metrics that workers set."""
ENTRYPOINT = CollectorRegistry()
"""Metrics that the entrypoint sets."""
RUN = "run"
"""Label of all metrics: `<name>/<run id>`. Prometheus adds the labels for pod and namespace."""


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    """If several workers set the gauge, the newest value is served."""
    return Gauge(name, documentation, [RUN, *labels], registry=WORKERS, multiprocess_mode="mostrecent")


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(name, documentation, [RUN, *labels], registry=WORKERS)


STEP = _gauge("cpmbee_step", "Completed steps of the run.")
PLANNED_STEPS = _gauge("cpmbee_planned_steps", "Steps of the run if it does not stop early.")
LOSS = _gauge("cpmbee_loss", "Mean loss over the target tokens of the last step, in nats.")
EVAL_LOSS = _gauge("cpmbee_eval_loss", "Mean loss over the target tokens of the last evaluation, in nats.")
TOKENS = _counter("cpmbee_tokens_total", "Tokens that all processes together have trained on.")
PROGRESS = _gauge("cpmbee_progress_timestamp_seconds", "Unix time of the last completed step or evaluation.")
ATTEMPT = _gauge("cpmbee_attempt", "Number of the run's newest attempt.")
WORLD_SIZE = _gauge("cpmbee_world_size", "Processes that train together (world size).")
CHECKPOINT = _gauge("cpmbee_checkpoint_timestamp_seconds", "Unix time when the newest checkpoint had been written.")
CHECKPOINT_DURATION = _gauge(
    "cpmbee_checkpoint_duration_seconds",
    "Seconds from the step of the newest checkpoint until it had been written. Training continues meanwhile.",
)
GPU_PEAK = _gauge("cpmbee_gpu_memory_peak_bytes", "Peak memory of tensors on the GPU `gpu`.", "gpu")
GPU_RESERVED = _gauge("cpmbee_gpu_memory_reserved_bytes", "Memory that torch has reserved on the GPU `gpu`.", "gpu")
GPU_SIZE = _gauge("cpmbee_gpu_memory_size_bytes", "Memory of the GPU `gpu`.", "gpu")
S3_SENT = _counter("cpmbee_s3_sent_bytes_total", "Bytes of request bodies sent to S3, including retries.")
S3_RECEIVED = _counter("cpmbee_s3_received_bytes_total", "Bytes of response bodies received from S3.")
S3_ERRORS = _counter(
    "cpmbee_s3_errors_total",
    "Failed requests to S3, including those that a retry fixed, by `reason`: an HTTP status, `no answer`, "
    "`broken body`.",
    "reason",
)

START = Gauge(
    "cpmbee_entrypoint_start_timestamp_seconds",
    "Unix time when the entrypoint of the pod started.",
    [RUN],
    registry=ENTRYPOINT,
)
TORCHRUN_STARTS = Counter(
    "cpmbee_torchrun_starts_total", "Starts of torchrun by the entrypoint of the pod.", [RUN], registry=ENTRYPOINT
)


def s3_counters(run: str) -> tuple[Callable[[int], None], Callable[[int], None], Callable[[str], None]]:
    """Return functions that count the bytes sent to S3, the bytes received, and the failures by their reason."""
    return S3_SENT.labels(run).inc, S3_RECEIVED.labels(run).inc, lambda reason: S3_ERRORS.labels(run, reason).inc()


def checkpoint_written(run: str, stepped_at: float) -> None:
    """Record that a checkpoint has been written, whose step was completed at `stepped_at` (Unix time)."""
    CHECKPOINT.labels(run).set_to_current_time()
    CHECKPOINT_DURATION.labels(run).set(time.time() - stepped_at)


@contextmanager
def served(run: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the metrics of this pod on the port in the environment, if any; for port 0, choose one and print it.

    Yields variables for the environment of workers. If the port cannot be used, print why and train without metrics.
    """
    port = os.environ.get(contract.METRICS_PORT_ENV)
    if not port:
        yield {}
        return
    disable_created_metrics()
    START.labels(run).set_to_current_time()
    TORCHRUN_STARTS.labels(run)  # exports 0
    folder = folder / "metrics"
    folder.mkdir()
    registry = CollectorRegistry()
    registry.register(ENTRYPOINT)
    MultiProcessCollector(registry, str(folder))
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 (Prometheus is in another pod)
    try:
        server, thread = start_http_server(int(port), everywhere, registry)
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"cannot serve metrics on port {port} ({contract.METRICS_PORT_ENV}): {error}\n")
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
