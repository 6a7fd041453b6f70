import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live

from cpmbee_job.cli.cluster.run_text import describe, summary
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference
from cpmbee_job.errors import UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.status import RunStatus

REDRAW_SECONDS = 3.0
LINE_SECONDS = 15.0


def status(
    run: RunReference,
    where: RunOptions,
    all_pods: Annotated[bool, flag("--all", "List all pods, however many there are.")] = False,
    watch: Annotated[bool, flag("--watch, -w", "Keep showing the state until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state, progress and problems of a run.

    The exit code is 0 in any state; `wait` exits with the run's exit code. Schema of --json:
    docs/reference/status.schema.json.

    Example: cpmbee-job status ccpm/0a1b2c3d4e5f --watch
    """
    from cpmbee_job.launch.runs.observe import observe

    if watch and as_json:
        raise UsageError("--watch and --json are incompatible: --json prints one document")
    found, cluster = where.find(run)
    if watch:
        _watch(lambda: observe(found, cluster), all_pods)
    elif as_json:
        console.print_json(observe(found, cluster).model_dump(mode="json"))
    else:
        console.print_lines(describe(observe(found, cluster), datetime.now(UTC), all_pods))


def _watch(observe: "Callable[[], RunStatus]", all_pods: bool) -> None:
    """Redraw on a terminal; elsewhere print a line for each change."""
    if console.stdout.is_terminal:
        with Live(console=console.stdout, auto_refresh=False) as live:
            while True:
                seen = observe()
                live.update(Group(*describe(seen, datetime.now(UTC), all_pods)), refresh=True)
                if seen.ended:
                    return
                time.sleep(REDRAW_SECONDS)
    last = ""
    while True:
        seen = observe()
        line = summary(seen)
        if (kind := re.sub(r" in \d+ \w+| \d+ \w+ ago", "", line)) != last:  # a countdown alone is not a change
            typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")
        if seen.ended:
            return
        last = kind
        time.sleep(LINE_SECONDS)
