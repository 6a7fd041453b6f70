"""Stay with a run until it ends, and print its state changes and logs. Ctrl-C ends the command, never the run."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from cpmbee_job.cli.cluster.run_text import summary
from cpmbee_job.cli.shared import console
from cpmbee_job.errors import ExitCode, NotFoundError

if TYPE_CHECKING:
    from cpmbee_job.launch.follow.log_position import LogLine
    from cpmbee_job.launch.follow.logs import LogSelection
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.launch.runs.status import RunStatus

LINE_SECONDS = 60.0
"""Seconds between two progress lines, where stderr is not a terminal."""
PALETTE = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


def attach(
    found: "FoundRun",
    cluster: "Cluster | None",
    timeout: float | None = None,
    *,
    follow: bool = False,
    on_status: "Callable[[RunStatus], None]",
) -> None:
    """Wait until the run ends, and print its state changes on stderr; with `follow` also its pods' logs.

    `on_status` gets each status observed. Raises the error with the run's exit code unless it succeeded,
    `UnfinishedError` after `timeout` seconds, and `typer.Exit` on Ctrl-C.
    """
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.logs import LogSelection
    from cpmbee_job.launch.follow.wait import as_error, wait_for_end

    changes = StateChanges()

    def observed(status: "RunStatus") -> None:
        on_status(status)
        changes.update(status)

    def wait() -> "RunStatus":
        return wait_for_end(found, cluster, on_status=observed, on_trouble=changes.trouble, timeout=timeout)

    with interruptible(found, cluster):
        if follow:
            waiting = begin(wait)
            try:
                follow_pods(found, cluster, waiting, LogSelection(), printer(console.stderr))
            except NotFoundError as no_logs:  # the run may end before any pod starts
                console.say(no_logs.message)
            status = waiting.result()
        else:
            with changes.live:
                status = wait()
    on_status(status)
    if (error := as_error(status)) is not None:
        raise error
    console.say(f"{status.reference}: {summary(status)}")


class StateChanges:
    """Prints on stderr what has changed: phase, problems, failed observations; on a terminal also the progress."""

    def __init__(self) -> None:
        self._problems: set[str] = set()
        self._troubles: set[str] = set()
        self._phase = ""
        self._progress_at = time.monotonic()
        self.live = console.stderr.status(Text("waiting"))
        """Shows the state in a line at the bottom of a terminal during a `with` block."""

    def update(self, status: "RunStatus") -> None:
        """Print what differs from the last status."""
        for note in status.notes:
            self.trouble(note)
        if status.phase == "lost" or status.ended:  # the state is unknown, or the caller prints the end
            return
        if self._troubles and not status.notes:
            self._troubles.clear()
            console.say("cluster and object store are reachable again")
        line = summary(status.model_copy(update={"problems": (), "reason": None}))
        due = not console.stderr.is_terminal and time.monotonic() - self._progress_at > LINE_SECONDS
        if status.phase != self._phase or (due and status.step is not None):
            self._phase, self._progress_at = status.phase, time.monotonic()
            console.say(f"{status.reference}: {line}")
        problems = {kind_of(problem): problem for problem in status.problems}
        for kind in problems.keys() - self._problems:
            console.stderr.print(Text(f"  ! {problems[kind]}", "yellow"))
        self._problems = set(problems)
        self.live.update(Text(line))

    def trouble(self, message: str) -> None:
        """Print why the run cannot be observed: each kind once, until all is reachable again."""
        if kind_of(message) not in self._troubles:
            self._troubles.add(kind_of(message))
            console.warn(f"{console.printable(' '.join(message.split()))}; still waiting")


def kind_of(message: str) -> str:
    """The message without its numbers and ages: `50 s ago` and `12 min ago` are not different messages."""
    return re.sub(r"\d+( \w+ ago)?", "#", message)


def follow_pods(
    found: "FoundRun",
    cluster: "Cluster | None",
    waiting: "Future[Any]",
    choice: "LogSelection",
    show: "Callable[[LogLine], None]",
) -> None:
    """Pass the pods' log lines to `show` until `waiting` is done. Raises `NotFoundError` if there is no log."""
    from cpmbee_job.launch.follow.following import follow_logs
    from cpmbee_job.launch.follow.logs import read_logs

    if cluster is None:
        console.say("no cluster is configured: the log is shown when the run has ended")
        waiting.result()
        lines = read_logs(found, None, choice, console.say)
    else:
        lines = follow_logs(found, cluster, choice, ended=waiting.done, on_message=console.say)
    for line in lines:
        show(line)


@contextmanager
def interruptible(found: "FoundRun", cluster: "Cluster | None", hint: str | None = None) -> Iterator[None]:
    """On Ctrl-C during the block, print how to return to the run (default: with `wait` and `cancel`), and exit."""
    try:
        yield
    except KeyboardInterrupt:
        run = found.arguments(None if cluster is None else cluster.namespace)
        hint = hint or f"see `cpmbee-job wait {run}` and `cpmbee-job cancel {run}`"
        console.say(f"{found.reference} continues; {hint}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def printer(to: Console, timestamps: bool = False) -> "Callable[[LogLine], None]":
    """A function that prints a log line after its pod's name, in the pod's color on a terminal."""
    from cpmbee_job.launch.kube import naming

    def show(line: "LogLine") -> None:
        source = line.pod if line.container == naming.TRAIN_CONTAINER else f"{line.pod} {line.container}"
        head = (f"{line.time[:23]}Z " if timestamps and line.time else "") + f"{source} | "
        if to.is_terminal:
            number = re.search(r"\d+$", line.pod)
            color = PALETTE[int(number[0]) % len(PALETTE) if number else 0]
            to.print(Text.assemble((head, color), console.printable(line.text)))
        else:
            to.file.write(f"{head}{console.printable(line.text)}\n")
            to.file.flush()

    return show
