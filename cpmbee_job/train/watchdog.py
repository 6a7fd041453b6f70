"""Ends a worker whose world stands still."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cpmbee_job.errors import ExitCode
from cpmbee_job.process import activity

Exchange = Callable[[bool], int]
"""Tells the other ranks whether this one has moved; returns another number whenever one of all has."""


class Watchdog:
    """Ends this process when nothing has moved for `timeout` seconds, here or on another rank: after a peer's death a
    collective can hang for ever, and only fresh processes can form a new world.

    A rank that waits for one that still reads its 19 GB lives on by what `connect`'s exchange says of that one. Both
    may fail or hang, as a peer does that holds the others' store: then only what moves here counts.
    """

    def __init__(
        self, timeout: float, on_stall: Callable[[], None], connect: Callable[[], Exchange] | None = None
    ) -> None:
        self._timeout = timeout
        self._on_stall = on_stall
        self._interval = min(1.0, timeout / 4)
        self._last = time.monotonic()
        self._done, self._has_left = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._listener = threading.Thread(target=self._listen, args=(connect,), name="peers", daemon=True)
        self._listener.start()

    def stop(self) -> None:
        self._done.set()

    def leave_peers(self) -> None:
        """The world has dissolved; what is left of this process is watched alone."""
        self._has_left.set()
        self._listener.join(self._interval)  # inside torch it would be in the way of this process's end

    def _watch(self) -> None:
        seen = activity.moves()
        while not self._done.wait(self._interval):
            if (moves := activity.moves()) != seen:
                seen, self._last = moves, time.monotonic()
            if time.monotonic() - self._last > self._timeout:
                sys.stderr.write(f"no progress for {self._timeout:.0f} s; where every thread stands:\n")
                faulthandler.dump_traceback(all_threads=True)
                self._on_stall()
                os._exit(ExitCode.STALLED)

    def _listen(self, connect: Callable[[], Exchange] | None) -> None:
        if connect is None:
            return
        told, heard = activity.moves(), 0
        with suppress(RuntimeError):  # torch's, where the rank that holds the store has gone
            exchange = connect()
            while not self._has_left.wait(self._interval):
                moves = activity.moves()
                news = exchange(moves != told)
                if news != heard:
                    heard, self._last = news, time.monotonic()
                told = moves
