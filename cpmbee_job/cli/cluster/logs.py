import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cpmbee_job.cli.cluster.attach import StateChanges, follow_pods, interruptible, printer
from cpmbee_job.cli.cluster.run_text import summary
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference, duration_option
from cpmbee_job.errors import UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.follow.log_position import LogLine


def logs(
    run: RunReference,
    where: RunOptions,
    follow: Annotated[bool, flag("--follow, -f", "Keep printing until the run ends.")] = False,
    previous: Annotated[bool, flag("--previous, -p", "Show the log from before the containers' last restart.")] = False,
    pod: Annotated[str | None, option("--pod", "POD", "Only one pod: its name, or its end (worker-1, 1).")] = None,
    since: Annotated[float | None, duration_option("--since", "Only the last 90s, 10m or 2h.")] = None,
    container: Annotated[
        str | None, option("--container, -c", "NAME", "Only `prepare` (the init container) or `pytorch` (training).")
    ] = None,
    timestamps: Annotated[bool, flag("--timestamps", "Start each line with its time in UTC.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the logs of a run's pods, merged by time.

    The logs come from the cluster while the pods exist, then from the object store. Of more than 32 pods, workers 0 to
    31 are shown; --pod shows another one. --follow waits for pods, and continues across restarts. --json prints a list
    with `time`, `pod`, `container` and `text` of each line.

    Example: cpmbee-job logs ccpm/0a1b2c3d4e5f --follow --since 10m
    """
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.logs import CONTAINERS, LogSelection, read_logs
    from cpmbee_job.launch.follow.wait import wait_for_end

    if previous and follow:
        raise UsageError("--previous and --follow are incompatible: a previous log no longer grows")
    if container is not None and container not in CONTAINERS:
        raise UsageError(f"--container: must be {' or '.join(CONTAINERS)} (got {container})")
    after = None if since is None else f"{datetime.now(UTC) - timedelta(seconds=since):%Y-%m-%dT%H:%M:%S.%f000Z}"
    selection = LogSelection(pod, CONTAINERS if container is None else (container,), after, previous)
    found, cluster = where.find(run)
    with ExitStack() as stack:
        show = stack.enter_context(_json_list()) if as_json else printer(console.stdout, timestamps)
        stack.enter_context(interruptible(found, cluster))
        if not follow:
            for line in read_logs(found, cluster, selection, console.say):
                show(line)
            return
        changes = StateChanges()
        waiting = begin(lambda: wait_for_end(found, cluster, on_status=changes.update, on_trouble=changes.trouble))
        follow_pods(found, cluster, waiting, selection, show)
        status = waiting.result()
    console.say(f"{status.reference}: {summary(status)}")


@contextmanager
def _json_list() -> "Iterator[Callable[[LogLine], None]]":
    """Print each line when it arrives, all together as one JSON list."""
    has_lines = False

    def show(line: "LogLine") -> None:
        nonlocal has_lines
        fields = {"time": line.time, "pod": line.pod, "container": line.container, "text": line.text}
        sys.stdout.write(f"{',' if has_lines else '['}\n{json.dumps(fields, ensure_ascii=False)}")
        sys.stdout.flush()
        has_lines = True

    try:
        yield show
    finally:
        if has_lines:
            sys.stdout.write("\n]\n")
    if not has_lines:
        sys.stdout.write("[]\n")
