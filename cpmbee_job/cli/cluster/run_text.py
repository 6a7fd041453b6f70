"""Describe runs as text: in one line, with all that is known, or as a table."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from cpmbee_job.cli.shared.console import columns
from cpmbee_job.launch.runs.durations import age, duration

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.listing import RunEntry
    from cpmbee_job.launch.runs.pods import PodStatus
    from cpmbee_job.launch.runs.status import RunStatus

SHOWN_PODS = 16
"""Up to this many pods are listed; more are only counted."""
REASON_CHARACTERS = 100
"""Characters of a reason in the table of runs; `status` shows all of it."""
COLORS = {
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


def summary(run: "RunStatus") -> str:
    """The state in one line."""
    parts: list[str] = [run.phase]
    if run.step is not None and run.total_steps is not None:
        parts.append(f"step {run.step}/{run.total_steps}")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4f}")
    parts += [run.reason] if run.reason else run.problems[:1]
    return ", ".join(parts)


def describe(run: "RunStatus", now: datetime, all_pods: bool = False) -> list[Text]:
    """All that is known of the run. Messages of pods and servers are plain text, never markup."""
    lines = [Text.assemble((run.reference, "bold"), "  ", (run.phase, COLORS[run.phase]), f"  {run.url}")]
    if run.reason:
        lines += _indented(run.reason, "", style="red" if run.phase in ("failed", "lost") else "")
    lines += [Text(f"  {line}") for line in (_progress(run), _training(run), _world(run, now)) if line]
    for problem in run.problems:
        lines += _indented(problem, "! ", style="yellow")
    lines += _pods(run, all_pods)
    for note in run.notes:
        lines += _indented(note, "not checked: ", style="dim")
    return lines


def table(runs: "Sequence[RunEntry]", now: datetime) -> list[Text]:
    """A header and one line for each run, in columns."""
    if not runs:
        return []
    rows = [("RUN", "PHASE", "STEP", "LOSS", "AGE", "REASON")]
    for run in runs:
        step = "" if run.step is None else f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        since = run.created_at or run.updated_at or run.ended_at
        reason = " ".join((run.reason or "").split())
        reason = reason if len(reason) <= REASON_CHARACTERS else f"{reason[:REASON_CHARACTERS]}…"
        rows.append((f"{run.name}/{run.run_id}", run.phase, step, loss, _age(since, now) if since else "", reason))
    return columns(rows, COLORS)


def _progress(run: "RunStatus") -> str:
    if run.step is None:
        return ""
    line = f"step {run.step}" + (f" of {run.total_steps}" if run.total_steps else "")
    line += "" if run.progress is None else f" ({run.progress:.0%})"
    line += "" if run.epoch is None else f", epoch {run.epoch}"
    return line + ("" if run.eta_s is None else f", ETA {duration(run.eta_s)}")


def _training(run: "RunStatus") -> str:
    parts = [] if run.loss is None else [f"loss {run.loss:.4f}"]
    parts += [] if run.tokens_per_s is None else [f"{run.tokens_per_s:,.0f} tokens/s"]
    parts += [] if run.best is None else [f"best eval loss {run.best.loss:.4f} at step {run.best.step}"]
    return ", ".join(parts)


def _world(run: "RunStatus", now: datetime) -> str:
    parts = [] if run.attempt is None else [f"attempt {run.attempt}"]
    parts += [] if run.world_size is None else [f"{run.world_size} process{'es' * (run.world_size != 1)}"]
    parts += [f"{run.restarts} container restart{'s' * (run.restarts != 1)}"] if run.restarts else []
    if run.updated_at and not run.ended:
        parts.append(f"last heartbeat {_age(run.updated_at, now)} ago")
    return ", ".join(parts)


def _pods(run: "RunStatus", all_pods: bool) -> list[Text]:
    if not run.pods:
        return []
    counts = Counter(pod.state for pod in run.pods)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    expected = f" of {run.workers}" if run.workers and run.workers != len(run.pods) else ""
    pods = f"{len(run.pods)}{expected} pod{'s' * (bool(expected) or len(run.pods) != 1)}"
    lines = [Text(f"  {pods} in namespace {run.namespace}: {states}")]
    if all_pods or len(run.pods) <= SHOWN_PODS:
        shown_above = " ".join(run.problems)  # a reason that several pods share
        rows = [(pod.name, pod.state, pod.node or "", _details(pod, shown_above)) for pod in run.pods]
        lines += [Text("    ").append_text(line) for line in columns(rows, COLORS)]
    return lines


def _details(pod: "PodStatus", shown_above: str) -> str:
    parts = [f"{pod.restarts} restart{'s' * (pod.restarts != 1)}"] if pod.restarts else []
    parts += [pod.reason] if pod.reason and pod.reason not in shown_above else []
    return ", ".join(parts)


def _indented(message: str, mark: str, style: str) -> list[Text]:
    first, *others = message.splitlines() or [""]
    return [Text(f"  {mark}{first}", style), *(Text(f"    {line}", style) for line in others)]


def _age(when: str, now: datetime) -> str:
    try:
        return duration(age(datetime.fromisoformat(when), now) or 0)
    except (ValueError, TypeError):
        return "?"
