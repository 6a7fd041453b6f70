"""The thread that writes to the store while training goes on."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cpmbee_job.process import activity
from cpmbee_job.store.retry import patiently

PENDING_BYTES = 2 << 30
"""What may wait to be written. A store that is away for a minute holds up nothing that fits in here."""


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(frozen=True)
class _Task:
    parts: tuple[Callable[[], None], ...]
    size: int
    may_be_dropped: bool


class Uploader:
    """A background thread that writes to the store, in order; a failing store is tried again for ten minutes.

    An error that lasts is raised by the next `submit` or by `finish`.
    """

    def __init__(self, pending_bytes: int = PENDING_BYTES) -> None:
        self._pending_bytes = pending_bytes
        self._tasks: deque[_Task] = deque()
        self._is_busy = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="uploader", daemon=True).start()

    def submit(self, *parts: Callable[[], None], size: int = 0, may_be_dropped: bool = False) -> None:
        """Do `parts` after what was submitted before, each until the store takes it. `size`: bytes that they hold.

        Where too many bytes are waiting, the oldest task that `may_be_dropped` is: the newer one stands for it. Where
        there is none, this waits.
        """
        with self._changed:
            self._raise()
            while self._tasks and self._error is None and size + self._waiting() > self._pending_bytes:
                droppable = next((task for task in self._tasks if task.may_be_dropped), None)
                if droppable is not None and may_be_dropped:
                    self._tasks.remove(droppable)
                else:
                    self._changed.wait()
            self._tasks.append(_Task(parts, size, may_be_dropped))
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._tasks or self._is_busy))
            self._raise()

    def _waiting(self) -> int:
        return sum(task.size for task in self._tasks)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks)
                task = self._tasks.popleft()
                self._is_busy = True
                self._changed.notify_all()
            try:
                for part in task.parts:
                    patiently(part)
                    activity.moved()
            except BaseException as error:  # handed to the training thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            del task, part
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
