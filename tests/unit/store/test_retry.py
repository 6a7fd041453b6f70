"""Which errors of a store are retried."""

import pytest

from cpmbee_job.errors import AccessError, DamagedError, DiskError, StoreError
from cpmbee_job.store.retry import with_retries


def failing(*errors: StoreError):
    """Return a task that fails with each error, then succeeds."""
    waiting = list(errors)

    def task() -> str:
        if waiting:
            raise waiting.pop(0)
        return "done"

    return task


def test_retries_after_a_temporary_failure(caplog):
    assert with_retries(failing(StoreError("503 SlowDown"))) == "done"
    assert "retrying in 1 s: 503 SlowDown" in caplog.text


@pytest.mark.parametrize("error", [DamagedError("altered"), DiskError("full")])
def test_permanent_errors_are_not_retried(error):
    with pytest.raises(type(error)):
        with_retries(failing(error))


def test_caller_decides_which_errors_are_permanent():
    with pytest.raises(AccessError):
        with_retries(failing(AccessError("no credentials")), permanent=(AccessError,))
    assert with_retries(failing(AccessError("the token is being renewed"))) == "done"


def test_stops_retrying_on_request():
    with pytest.raises(StoreError):
        with_retries(failing(StoreError("503")), should_stop=lambda: True)
