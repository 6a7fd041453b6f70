"""Writes to the object store in the background, while training continues."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cpmbee_job.process import activity
from cpmbee_job.store.retry import with_retries

MAX_PENDING_BYTES = 2 << 30
"""Limit of the data that waits to be written. Until it is reached, an outage of the store does not block training."""


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(frozen=True)
class _Task:
    writes: tuple[Callable[[], None], ...]
    size: int
    may_be_dropped: bool


class Uploader:
    """A thread that executes writes in order, and retries them with backoff while the store fails.

    The next `submit` or `finish` raises an error that retries do not fix.
    """

    def __init__(self, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self._max_pending_bytes = max_pending_bytes
        self._tasks: deque[_Task] = deque()
        self._is_busy = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="uploader", daemon=True).start()

    def submit(self, *writes: Callable[[], None], size: int = 0, may_be_dropped: bool = False) -> None:
        """Queue `writes`, which hold `size` bytes of data, as one task.

        If too much data is pending and this task `may_be_dropped`, it replaces the oldest pending task that may be
        dropped too; otherwise wait.
        """
        with self._changed:
            self._raise_error()
            while self._tasks and self._error is None and size + self._pending_bytes() > self._max_pending_bytes:
                droppable = next((task for task in self._tasks if task.may_be_dropped), None)
                if droppable is not None and may_be_dropped:
                    self._tasks.remove(droppable)
                else:
                    self._changed.wait()
            self._tasks.append(_Task(writes, size, may_be_dropped))
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all tasks are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._tasks or self._is_busy))
            self._raise_error()

    def _pending_bytes(self) -> int:
        return sum(task.size for task in self._tasks)

    def _raise_error(self) -> None:
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
                for write in task.writes:
                    with_retries(write)
                    activity.record()
            except BaseException as error:  # raised in the training thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            del task, write  # frees the data
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
