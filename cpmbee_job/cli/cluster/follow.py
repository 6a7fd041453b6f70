"""Verbs that stay with a run: `logs`, `wait`; and what `submit` and `resume` do with --wait and --follow.

Ctrl-C ends each of them with 130, as a shell's own commands; the run goes on.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cpmbee_job.cli.cluster.status import summary as state_line
from cpmbee_job.cli.local.job import AsJson
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.cluster_options import Context, Namespace, Output, Reference, find
from cpmbee_job.cli.shared.report import JUnitFile, SummaryFile, reported
from cpmbee_job.cli.shared.signals import CancelOnSignal, cancelling, require_cancellable
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle, storage
from cpmbee_job.errors import ExitCode, NotFoundError, UsageError
from cpmbee_job.launch.kube import naming

if TYPE_CHECKING:
    from cpmbee_job.launch.follow.logs import Choice, LogLine
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.launch.runs.status import RunStatus

LINE_SECONDS = 60.0
"""Seconds between two lines about progress where stderr is no terminal."""
PALETTE = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


def seconds(text: str) -> float:
    """A length of time: seconds, or like 90s, 30m, 2h, 1h30m, 7d."""
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if parts is None or not any(parts.groups()):
        raise typer.BadParameter(f"{text!r} is no length of time; like 90, 90s, 30m, 2h, 1h30m, 7d")
    days, hours, minutes, rest = (float(part or 0) for part in parts.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        parser=seconds,
        metavar="TIME",
        help="How long to wait, like 600, 90m or 2h; exit code 101 after it. The run goes on.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(logs)
    app.command()(wait)


def wait(
    run: Reference,
    timeout: Timeout = None,
    cancel_on_signal: CancelOnSignal = False,
    summary: SummaryFile = None,
    junit: JUnitFile = None,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Wait until a run has ended; the exit code is the run's.

    0: it has succeeded, and its result and delta are in the store. 100: it failed, or the code of what made it fail,
    like 3 for bad data. 101: not ended after --timeout. 102: no such run. 103: cancelled. 130: Ctrl-C, the run goes on.
    Trouble with the cluster's API or the store never ends a wait.

    Example: cpmbee-job wait ccpm/0a1b2c3d4e5f --timeout 2h
    """
    with reported(run, summary, junit, as_json=as_json) as report, cancelling(cancel_on_signal, report.see) as signals:
        found, cluster = find(run, context, namespace, output, storage(endpoint_url, path_style))
        require_cancellable(cancel_on_signal, found, cluster)
        signals.watch(found, cluster)
        stay(found, cluster, timeout, on_status=report.see)


def logs(
    run: Reference,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Show what the containers said before their last restart.")
    ] = False,
    pod: Annotated[
        str | None, typer.Option("--pod", help="Show this pod only, by its name or the end of it, like worker-1 or 1.")
    ] = None,
    since: Annotated[
        float | None,
        typer.Option("--since", parser=seconds, metavar="TIME", help="Show the last 90s, 10m or 2h, say."),
    ] = None,
    container: Annotated[
        str | None,
        typer.Option("--container", "-c", help="Show `prepare` (the init step) or `pytorch` (training) only."),
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time, in UTC.")] = False,
    as_json: AsJson = False,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
) -> None:
    """Show what the pods of a run say, all ranks by time; when the pods are gone, what the store has kept.

    Of more than 32 pods those of worker 0 to 31 are shown; --pod shows another. --follow waits for pods, and reads on
    over restarts. --json prints a list with `time`, `pod`, `container` and `text` of each line.

    Example: cpmbee-job logs ccpm/0a1b2c3d4e5f --follow --since 10m
    """
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.logs import CONTAINERS, Choice, read_logs

    if previous and follow:
        raise UsageError("--previous shows what has ended, which can't be followed")
    if container is not None and container not in CONTAINERS:
        raise UsageError(f"--container {container}: there are {' and '.join(CONTAINERS)}")
    after = None if since is None else f"{datetime.now(UTC) - timedelta(seconds=since):%Y-%m-%dT%H:%M:%S.%f000Z}"
    choice = Choice(pod, CONTAINERS if container is None else (container,), after, previous)
    found, cluster = find(run, context, namespace, output, storage(endpoint_url, path_style))
    with ExitStack() as stack:
        show = stack.enter_context(_json_list()) if as_json else printer(console.stdout, timestamps)
        stack.enter_context(_interruptible(found, cluster))
        if not follow:
            for line in read_logs(found, cluster, choice, console.say):
                show(line)
            return
        waiting = begin(lambda: _wait(found, cluster, None, _News()))
        _follow(found, cluster, waiting, choice, show)
        _tell_end(waiting.result())


def stay(
    found: "FoundRun",
    cluster: "Cluster | None",
    timeout: float | None = None,
    *,
    follow: bool = False,
    on_status: "Callable[[RunStatus], None]",
) -> None:
    """Show on stderr what becomes of the run until it has ended; with `follow` also what its pods say. `on_status` gets
    every look at it.

    Any end but success is raised as the error with the run's exit code, `UnfinishedError` after `timeout` seconds;
    Ctrl-C ends the command with 130, never the run.
    """
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.logs import Choice
    from cpmbee_job.launch.follow.wait import as_error

    news = _News()
    with _interruptible(found, cluster):
        if follow:
            waiting = begin(lambda: _wait(found, cluster, timeout, news, on_status))
            try:
                _follow(found, cluster, waiting, Choice(), printer(console.stderr, timestamps=False))
            except NotFoundError as nothing:  # it may have ended before any pod could speak
                console.say(nothing.message)
            status = waiting.result()
        else:
            with news.live():
                status = _wait(found, cluster, timeout, news, on_status)
    if (error := as_error(status)) is not None:
        raise error
    _tell_end(status)


class _News:
    """Says on stderr what has changed: phase, problems, trouble with looking; on a terminal also how far it is."""

    def __init__(self) -> None:
        self._problems: set[str] = set()
        self._troubles: set[str] = set()
        self._phase = ""
        self._progress_at = time.monotonic()
        self._status = console.stderr.status(Text("waiting")) if console.stderr.is_terminal else None

    def live(self) -> AbstractContextManager[object]:
        """While it is open, the state is shown in a line that stays below, where stderr is a terminal."""
        return nullcontext() if self._status is None else self._status

    def tell(self, status: "RunStatus") -> None:
        for note in status.notes:
            self.trouble(note)
        if status.phase == "lost" or status.ended:  # nothing is known of it, or it is told by those who wait
            return
        if self._troubles and not status.notes:
            self._troubles.clear()
            console.say("all can be asked again")
        line = state_line(status.model_copy(update={"problems": (), "reason": None}))
        due = self._status is None and time.monotonic() - self._progress_at > LINE_SECONDS
        if status.phase != self._phase or (due and status.step is not None):
            self._phase, self._progress_at = status.phase, time.monotonic()
            console.say(f"{status.reference}: {line}")
        problems = {_kind(problem): problem for problem in status.problems}
        for kind in problems.keys() - self._problems:
            console.stderr.print(Text(f"  ! {problems[kind]}", "yellow"))
        self._problems = set(problems)
        if self._status is not None:
            self._status.update(Text(line))

    def trouble(self, words: str) -> None:
        """Each is told once, until all is well again."""
        if _kind(words) not in self._troubles:
            self._troubles.add(_kind(words))
            console.warn(f"{console.printable(' '.join(words.split()))}; the wait goes on")


def _kind(words: str) -> str:
    """The same for words that differ in numbers only: 12 min is no news after 11, nor after 50 s."""
    return re.sub(r"\d+( \w+ ago)?", "#", words)


def _wait(
    found: "FoundRun",
    cluster: "Cluster | None",
    timeout: float | None,
    news: _News,
    on_status: "Callable[[RunStatus], None]" = lambda _status: None,
) -> "RunStatus":
    from cpmbee_job.launch.follow.wait import wait_for_end

    def look(status: "RunStatus") -> None:
        on_status(status)
        news.tell(status)

    status = wait_for_end(found, cluster, on_status=look, on_trouble=news.trouble, timeout=timeout)
    on_status(status)
    return status


def _tell_end(status: "RunStatus") -> None:
    console.say(f"{status.reference}: {state_line(status)}")


def _follow(
    found: "FoundRun",
    cluster: "Cluster | None",
    waiting: "Future[RunStatus]",
    choice: "Choice",
    show: "Callable[[LogLine], None]",
) -> None:
    from cpmbee_job.launch.follow.following import follow_logs
    from cpmbee_job.launch.follow.logs import read_logs

    if cluster is None:
        console.say("no cluster to ask: the log is shown when the run has ended")
        waiting.result()
        lines = read_logs(found, None, choice, console.say)
    else:
        lines = follow_logs(found, cluster, choice, ended=waiting.done, on_words=console.say)
    for line in lines:
        show(line)


@contextmanager
def _interruptible(found: "FoundRun", cluster: "Cluster | None") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        run = found.arguments(None if cluster is None else cluster.namespace)
        words = f"`cpmbee-job wait {run}` waits for it, `cpmbee-job cancel {run}` stops it"
        console.say(f"{found.reference} goes on; {words}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def printer(to: Console, timestamps: bool) -> "Callable[[LogLine], None]":
    """Prints a line after its pod's name, in the pod's colour where `to` is a terminal."""

    def show(line: "LogLine") -> None:
        where = line.pod if line.container == naming.TRAIN_CONTAINER else f"{line.pod} {line.container}"
        head = (f"{line.time[:23]}Z " if timestamps and line.time else "") + f"{where} | "
        if to.is_terminal:
            number = re.search(r"\d+$", line.pod)
            colour = PALETTE[int(number[0]) % len(PALETTE) if number else 0]
            to.print(Text.assemble((head, colour), console.printable(line.text)))
        else:
            to.file.write(f"{head}{console.printable(line.text)}\n")
            to.file.flush()

    return show


@contextmanager
def _json_list() -> "Iterator[Callable[[LogLine], None]]":
    """Prints each line as it comes; all together are one JSON document."""
    separator = "[\n"

    def show(line: "LogLine") -> None:
        nonlocal separator
        record = {"time": line.time, "pod": line.pod, "container": line.container, "text": line.text}
        sys.stdout.write(separator + json.dumps(record, ensure_ascii=False))
        sys.stdout.flush()
        separator = ",\n"

    try:
        yield show
        if separator == "[\n":
            sys.stdout.write("[")
            separator = ",\n"
    finally:
        if separator == ",\n":
            sys.stdout.write("\n]\n")
