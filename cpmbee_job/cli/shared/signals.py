"""--cancel-on-signal: a cancelled CI pipeline sends SIGINT or SIGTERM, and its run is cancelled with it.

A pipeline whose machine is lost sends no signal, so its run continues.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from cpmbee_job.cli.shared import console
from cpmbee_job.errors import CancelledError, CpmbeeError, NotFoundError, UnfinishedError, UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.launch.runs.find import FoundRun
    from cpmbee_job.launch.runs.status import RunStatus


class Signaled(BaseException):
    """A signal arrived that cancels the run."""


class Signals:
    """The signal handler, and the run that it cancels: none yet, one that is being started, or one that exists."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self.received = ""
        """Name of the first signal that arrived."""
        self._found: FoundRun | None = None
        self._cluster: Cluster | None = None
        self._held = False

    def watch(self, found: "FoundRun", cluster: "Cluster | None", *, starting: bool = False) -> None:
        """Cancel this run on a signal. While it is `starting`, defer signals until its parts are known.

        Raises `Signaled` if a signal was deferred, `UsageError` for a run that this command could not cancel.
        """
        if self._enabled and (cluster is None or not found.url.startswith("s3://")):
            raise UsageError(f"--cancel-on-signal: {found.url} is a local run, or no cluster is configured")
        self._found, self._cluster, self._held = found, cluster, starting
        if self.received and not starting:
            raise Signaled

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM."""
        if self.received:  # only the first signal counts
            return
        self.received = signal.Signals(number).name
        if not self._held:
            raise Signaled

    def cancel(self, on_status: "Callable[[RunStatus], None]") -> CpmbeeError:
        """Cancel the run, and pass its status to `on_status`. Returns the error that ends the command."""
        from cpmbee_job.launch.lifecycle.cancel import cancel
        from cpmbee_job.launch.runs.find import find_run
        from cpmbee_job.launch.runs.observe import observe

        if self._found is None or self._cluster is None:
            return CancelledError(f"{self.received}: no run was started")
        name = self._found.reference
        console.say(f"{self.received}: cancelling {name}")
        try:
            found = find_run(self._found.url, self._cluster, storage=self._found.storage)
            with suppress(UnfinishedError):  # its pods are terminating
                cancel(found, self._cluster, f"cancelled by {self.received}", timeout=0)
            on_status(observe(found, self._cluster))
        except NotFoundError:
            return CancelledError(f"{self.received}: {name} was not started")
        except CpmbeeError as error:
            return error
        return CancelledError(
            f"{name} was cancelled on {self.received}; its pods write a checkpoint",
            hint=f"resume it with `cpmbee-job resume {found.arguments(None)}`",
        )


@contextmanager
def cancelling(enabled: bool, on_status: "Callable[[RunStatus], None]") -> Iterator[Signals]:
    """If `enabled`, SIGINT and SIGTERM during the block cancel the run that `Signals` was given.

    The block then ends with `CancelledError`, or with the error that prevented the cancellation.
    """
    signals = Signals(enabled)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if enabled}
    try:
        for number in before:
            signal.signal(number, signals.handle)
        yield signals
    except BaseException:  # raised by the signal, or by a submit that failed while the signal was deferred
        if not signals.received:
            raise
        raise signals.cancel(on_status) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
