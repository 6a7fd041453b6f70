"""Verbs that look at runs: `status`, `list`."""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, Namespace, Output, Reference, connect_unless, find
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import UsageError
from cpmbee_job.launch.runs.durations import duration

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.listing import RunEntry
    from cpmbee_job.launch.runs.pods import PodStatus
    from cpmbee_job.launch.runs.status import RunStatus

SHOWN_PODS = 16
"""Pods that are shown one by one; of more, only what is not well."""
REASON_CHARACTERS = 100
"""Of a reason in `list`; `status` tells all of it."""
REDRAW_SECONDS = 3.0
LINE_SECONDS = 15.0
COLOURS = {
    "queued": "yellow",
    "pending": "yellow",
    "preparing": "cyan",
    "running": "green",
    "restarting": "yellow",
    "ending": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "lost": "red",
}


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command(name="list")(list_)


def status(
    run: Reference,
    all_pods: Annotated[bool, typer.Option("--all", help="Show each pod, however many there are.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until it has ended.")] = False,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Show how far a run is, and what is in its way.

    Ends with 0 whatever the run's state; `wait` tells its end. The fields of --json: docs/reference/status.schema.json.

    Example: cpmbee-job status ccpm/0a1b2c3d4e5f --watch
    """
    from cpmbee_job.launch.runs.observe import observe

    if watch and as_json:
        raise UsageError("--watch shows many states, --json prints one document: choose one")
    found, cluster = find(run, context, namespace, output, storage(endpoint_url, path_style))
    if watch:
        _watch(lambda: observe(found, cluster), all_pods)
    elif as_json:
        console.print_json(observe(found, cluster).model_dump(mode="json"))
    else:
        for line in describe(observe(found, cluster), datetime.now(UTC), all_pods):
            console.stdout.print(line)


def list_(
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show at most so many, the newest; 0 shows all.")] = 50,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """List the runs of a namespace and, with --output, those of the store.

    The fields of --json: docs/reference/list.schema.json.

    Example: cpmbee-job list --output s3://bucket/runs
    """
    from cpmbee_job.launch.runs.listing import list_runs

    cluster = connect_unless(output is not None, context, namespace)
    listing = list_runs(cluster, output=output, storage=storage(endpoint_url, path_style), limit=limit or None)
    for note in listing.notes:
        console.warn(note)
    if as_json:
        console.print_json(listing.model_dump(mode="json"))
        return
    for line in table(listing.runs, datetime.now(UTC)):
        console.stdout.print(line)
    left_out = listing.total - len(listing.runs)
    if left_out:
        console.say(f"{left_out} older ones are left out (--limit)")
    elif not listing.runs:
        console.say("no runs" + ("" if cluster is None else f" in namespace {cluster.namespace}"))


def _watch(look: "Callable[[], RunStatus]", all_pods: bool) -> None:
    """Redraw on a terminal; elsewhere a line whenever something has changed."""
    if console.stdout.is_terminal:
        with Live(console=console.stdout, auto_refresh=False) as live:
            while True:
                seen = look()
                live.update(Group(*describe(seen, datetime.now(UTC), all_pods)), refresh=True)
                if seen.ended:
                    return
                time.sleep(REDRAW_SECONDS)
    last = ""
    while True:
        seen = look()
        line = summary(seen)
        if (news := re.sub(r" in \d+ \w+| \d+ \w+ ago", "", line)) != last:  # a countdown is no news
            typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")
        if seen.ended:
            return
        last = news
        time.sleep(LINE_SECONDS)


def summary(run: "RunStatus") -> str:
    """The state in one line."""
    words: list[str] = [run.phase]
    if run.step is not None and run.total_steps is not None:
        words.append(f"step {run.step}/{run.total_steps}")
    if run.loss is not None:
        words.append(f"loss {run.loss:.4f}")
    words += [run.reason] if run.reason else run.problems[:1]
    return ", ".join(words)


def describe(run: "RunStatus", now: datetime, all_pods: bool = False) -> list[Text]:
    """The state in lines. What pods and servers say is plain text, whatever it looks like."""
    lines = [Text.assemble((run.reference, "bold"), "  ", (run.phase, COLOURS[run.phase]), f"  {run.url}")]
    if run.reason:
        lines += _indented(run.reason, "", style="red" if run.phase in ("failed", "lost") else "")
    lines += [Text(f"  {words}") for words in (_progress(run), _training(run), _world(run, now)) if words]
    for problem in run.problems:
        lines += _indented(problem, "! ", style="yellow")
    lines += _pods(run, all_pods)
    for note in run.notes:
        lines += _indented(note, "not looked at: ", style="dim")
    return lines


def table(runs: "Sequence[RunEntry]", now: datetime) -> list[Text]:
    """One line for each run, in columns."""
    if not runs:
        return []
    rows = [("RUN", "PHASE", "STEP", "LOSS", "AGE", "REASON")]
    for run in runs:
        step = "" if run.step is None else f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        since = run.created_at or run.updated_at or run.ended_at
        age = _ago(since, now) if since else ""
        reason = " ".join((run.reason or "").split())
        reason = reason if len(reason) <= REASON_CHARACTERS else f"{reason[:REASON_CHARACTERS]}…"
        rows.append((f"{run.name}/{run.run_id}", run.phase, step, loss, age, reason))
    return _columns(rows)


def _progress(run: "RunStatus") -> str:
    if run.step is None:
        return ""
    words = f"step {run.step}" + (f" of {run.total_steps}" if run.total_steps else "")
    words += "" if run.progress is None else f" ({run.progress:.0%})"
    words += "" if run.epoch is None else f", epoch {run.epoch}"
    return words + ("" if run.eta_s is None else f", ETA {duration(run.eta_s)}")


def _training(run: "RunStatus") -> str:
    words = [] if run.loss is None else [f"loss {run.loss:.4f}"]
    words += [] if run.tokens_per_s is None else [f"{run.tokens_per_s:,.0f} tokens/s"]
    words += [] if run.best is None else [f"best eval loss {run.best.loss:.4f} at step {run.best.step}"]
    return ", ".join(words)


def _world(run: "RunStatus", now: datetime) -> str:
    words = [] if run.attempt is None else [f"attempt {run.attempt}"]
    words += [] if run.world_size is None else [f"{run.world_size} process{'es' * (run.world_size != 1)}"]
    words += [f"{run.restarts} container restart{'s' * (run.restarts != 1)}"] if run.restarts else []
    if run.updated_at and not run.ended:
        words.append(f"last sign of life {_ago(run.updated_at, now)} ago")
    return ", ".join(words)


def _pods(run: "RunStatus", all_pods: bool) -> list[Text]:
    if not run.pods:
        return []
    counts = Counter(pod.state for pod in run.pods)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    wanted = f" of {run.workers}" if run.workers and run.workers != len(run.pods) else ""
    pods = f"{len(run.pods)}{wanted} pod{'s' * (bool(wanted) or len(run.pods) != 1)}"
    lines = [Text(f"  {pods} in namespace {run.namespace}: {states}")]
    if all_pods or len(run.pods) <= SHOWN_PODS:
        # a reason that many share is told once, above
        told = " ".join(run.problems)
        rows = [(pod.name, pod.state, pod.node or "", _own_words(pod, told)) for pod in run.pods]
        lines += [Text("    ").append_text(line) for line in _columns(rows)]
    return lines


def _own_words(pod: "PodStatus", told: str) -> str:
    words = [f"{pod.restarts} restart{'s' * (pod.restarts != 1)}"] if pod.restarts else []
    words += [pod.reason] if pod.reason and pod.reason not in told else []
    return ", ".join(words)


def _columns(rows: Sequence[Sequence[str]]) -> list[Text]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            line.append(f"{cell:{width}}  " if width else "", COLOURS.get(cell, ""))
        line.rstrip()
        lines.append(line)
    return lines


def _indented(words: str, mark: str, style: str) -> list[Text]:
    first, *others = words.splitlines() or [""]
    return [Text(f"  {mark}{first}", style), *(Text(f"    {line}", style) for line in others)]


def _ago(when: str, now: datetime) -> str:
    try:
        return duration(max((now - datetime.fromisoformat(when)).total_seconds(), 0))
    except (ValueError, TypeError):
        return "?"
