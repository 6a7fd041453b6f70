"""--cancel-on-signal: a pipeline that is cancelled sends SIGINT or SIGTERM, and its run is cancelled with it. One whose
machine is lost sends nothing, and the run goes on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.errors import CancelledError, CpmbeeError, NotFoundError, UnfinishedError, UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.launch.runs.status import RunStatus

CancelOnSignal = Annotated[
    bool,
    typer.Option(
        "--cancel-on-signal",
        help="SIGINT and SIGTERM, sent to a cancelled pipeline, cancel the run, whoever began it; exit code 103.",
    ),
]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signalled(BaseException):
    """A signal has come that cancels the run."""


class Signals:
    """What they mean by now: nothing is begun yet, a run is being begun, or there is one."""

    def __init__(self) -> None:
        self.come = ""
        """Name of the first that has come."""
        self._found: FoundRun | None = None
        self._cluster: Cluster | None = None
        self._held = False

    def hold(self, found: "FoundRun", cluster: "Cluster") -> None:
        """This run is about to be begun. A signal waits until it is: what is there to cancel must be known."""
        self._found, self._cluster, self._held = found, cluster, True

    def watch(self, found: "FoundRun", cluster: "Cluster | None") -> None:
        """This run is there: a signal cancels it at once."""
        self._found, self._cluster, self._held = found, cluster, False
        if self.come:
            raise Signalled

    def arrived(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.come:  # the first has been heard
            return
        self.come = signal.Signals(number).name
        if not self._held:
            raise Signalled

    def cancel(self, see: "Callable[[RunStatus], None]") -> CpmbeeError:
        """Cancels the run; `see` gets how it is then. Returns what the command ends with."""
        from cpmbee_job.launch.lifecycle.cancel import cancel
        from cpmbee_job.launch.runs.find import find_run
        from cpmbee_job.launch.runs.observe import observe

        if self._found is None or self._cluster is None:
            return CancelledError(f"{self.come}: no run was begun")
        name = self._found.reference
        console.say(f"{self.come}: cancelling {name}")
        try:
            found = find_run(self._found.url, self._cluster, storage=self._found.storage)
            with suppress(UnfinishedError):  # its pods are on their way out
                cancel(found, self._cluster, f"cancelled by {self.come}", timeout=0)
            see(observe(found, self._cluster))
        except NotFoundError:
            return CancelledError(f"{self.come}: {name} was not begun")
        except CpmbeeError as error:
            return error
        return CancelledError(
            f"{name} is cancelled, as {self.come} asked for; its pods write a checkpoint",
            hint=f"`cpmbee-job resume {found.arguments(None)}` lets it go on",
        )


@contextmanager
def cancelling(enabled: bool, see: "Callable[[RunStatus], None]") -> Iterator[Signals]:
    """While it is open and `enabled`, SIGINT and SIGTERM cancel the run that `Signals` has been told of; the block then
    ends with `CancelledError`, or what kept it from being cancelled. Else they do what they always do."""
    signals = Signals()
    if not enabled:
        yield signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, signals.arrived)
        yield signals
    except BaseException:  # that of the signal, or of a submit that it had to wait for
        if not signals.come:
            raise
        raise signals.cancel(see) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_cancellable(enabled: bool, found: "FoundRun", cluster: "Cluster | None") -> None:
    """Raises `UsageError` for a run that no signal to this command could cancel."""
    if enabled and (cluster is None or not found.url.startswith("s3://")):
        raise UsageError(f"--cancel-on-signal: {found.url} is a run of this machine, or no cluster is known here")
