"""What is tried again when a store fails, and what is not."""

import pytest

from cpmbee_job.errors import AccessError, DamagedError, DiskError, StoreError
from cpmbee_job.store.retry import with_retries


def failing(*errors: StoreError):
    """A task that fails with each of them, then succeeds."""
    waiting = list(errors)

    def task() -> str:
        if waiting:
            raise waiting.pop(0)
        return "done"

    return task


def test_a_store_that_comes_back_is_waited_for(caplog):
    assert with_retries(failing(StoreError("503 SlowDown"))) == "done"
    assert "retrying in 1 s: 503 SlowDown" in caplog.text


@pytest.mark.parametrize("error", [DamagedError("altered"), DiskError("full")])
def test_what_will_not_mend_is_raised_at_once(error):
    with pytest.raises(type(error)):
        with_retries(failing(error))


def test_what_is_hopeless_is_the_caller_s_to_say():
    with pytest.raises(AccessError):
        with_retries(failing(AccessError("no credentials")), permanent=(AccessError,))
    assert with_retries(failing(AccessError("the token is being renewed"))) == "done"


def test_one_in_a_hurry_does_not_wait():
    with pytest.raises(StoreError):
        with_retries(failing(StoreError("503")), should_stop=lambda: True)
