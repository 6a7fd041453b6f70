"""The uploader writes in order, retries, and blocks training only if too much data is pending."""

import threading

import pytest

from cpmbee_job.errors import RefusedError, StoreError
from cpmbee_job.train.output.uploader import Uploader


def test_tasks_run_in_order_and_errors_are_raised() -> None:
    done: list[int] = []
    uploader = Uploader()
    for number in range(5):
        uploader.submit(lambda number=number: done.append(number))
    uploader.finish()
    assert done == [0, 1, 2, 3, 4]

    def refuse() -> None:
        raise RefusedError("a newer attempt")

    uploader.submit(refuse)
    with pytest.raises(RefusedError):
        uploader.finish()


def test_a_failing_store_is_retried() -> None:
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreError("503")

    uploader = Uploader()
    uploader.submit(fail_once)
    uploader.finish()
    assert len(calls) == 2


def test_newer_checkpoints_replace_pending_ones() -> None:
    away, began, done = threading.Event(), threading.Event(), []
    uploader = Uploader(max_pending_bytes=20)
    uploader.submit(lambda: (began.set(), away.wait()), size=10, may_be_dropped=True)  # type: ignore[arg-type, func-returns-value]
    began.wait()
    for number in range(5):
        uploader.submit(lambda number=number: done.append(number), size=10, may_be_dropped=True)
    away.set()
    uploader.finish()
    assert done == [3, 4]


def test_tasks_that_may_not_be_dropped_wait() -> None:
    away, began, done = threading.Event(), threading.Event(), []
    uploader = Uploader(max_pending_bytes=20)
    uploader.submit(lambda: (began.set(), away.wait()), size=10)  # type: ignore[arg-type, func-returns-value]
    began.wait()
    deltas = threading.Thread(
        target=lambda: [uploader.submit(lambda n=n: done.append(n), size=10) for n in range(4)]  # type: ignore[misc]
    )
    deltas.start()
    away.set()
    deltas.join()
    uploader.finish()
    assert done == [0, 1, 2, 3]


def test_a_task_larger_than_the_limit_is_written() -> None:
    done: list[int] = []
    uploader = Uploader(max_pending_bytes=20)
    for number in range(3):
        uploader.submit(lambda number=number: done.append(number), size=100)
    uploader.finish()
    assert done == [0, 1, 2]
