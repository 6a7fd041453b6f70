"""Ends a worker that makes no progress."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cpmbee_job.errors import ExitCode
from cpmbee_job.process import activity

SharedCounter = Callable[[bool], int]
"""Adds its argument to a counter that all ranks share, and returns the count."""


class Watchdog:
    """Ends this process if there was no activity for `timeout` seconds, neither here nor on another rank.

    After a peer's death a collective can hang forever, and only new processes can form a new world. Activity of peers
    counts because a rank may wait for one that still reads its part of the model. The shared counter that
    `connect_peers` returns may fail or hang, for example if the peer that hosts the store is gone; from then on only
    local activity counts.
    """

    def __init__(
        self, timeout: float, on_stall: Callable[[], None], connect_peers: Callable[[], SharedCounter] | None = None
    ) -> None:
        self._timeout = timeout
        self._on_stall = on_stall
        self._interval = min(1.0, timeout / 4)
        self._last_activity = time.monotonic()
        self._stopped, self._ignores_peers = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._peers_thread = threading.Thread(
            target=self._watch_peers, args=(connect_peers,), name="watchdog-peers", daemon=True
        )
        self._peers_thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def leave_peers(self) -> None:
        """Watch only this process from now on: the process group is destroyed."""
        self._ignores_peers.set()
        self._peers_thread.join(self._interval)  # a thread inside torch would block the exit of this process

    def _watch(self) -> None:
        seen = activity.count()
        while not self._stopped.wait(self._interval):
            if (count := activity.count()) != seen:
                seen, self._last_activity = count, time.monotonic()
            if time.monotonic() - self._last_activity > self._timeout:
                sys.stderr.write(f"no progress for {self._timeout:.0f} s; stacks of all threads:\n")
                faulthandler.dump_traceback(all_threads=True)
                self._on_stall()
                os._exit(ExitCode.STALLED)

    def _watch_peers(self, connect_peers: Callable[[], SharedCounter] | None) -> None:
        if connect_peers is None:
            return
        reported, known = activity.count(), 0
        with suppress(RuntimeError):  # torch raises it if the rank that hosts the store is gone
            add = connect_peers()
            while not self._ignores_peers.wait(self._interval):
                own = activity.count()
                total = add(own != reported)
                if total != known:
                    known, self._last_activity = total, time.monotonic()
                reported = own
