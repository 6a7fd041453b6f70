"""Failures in the container and in the store, and which of them fail the run."""

from pathlib import Path

import pytest

from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec
from cpmbee_job.train.failures import FAILURE_ENV, LOST_PEER, Failure, record_failure


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = f"name: a\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {tmp_path}\ntrain: {{max_failures: 2}}\n"
    return Run.start(parse_spec(text, source="job.yaml"), "r1")


def test_repeated_failures_at_the_same_step_fail_the_run(run: Run) -> None:
    failure = Failure("CUDA out of memory", step=4, permanent=False, exit_code=1)
    assert not record_failure(run, 1, failure)
    assert record_failure(run, 2, failure)


def test_failures_with_another_step_or_reason_do_not_fail_the_run(run: Run) -> None:
    assert not record_failure(run, 1, Failure("x", 4, permanent=False, exit_code=1))
    assert not record_failure(run, 2, Failure("x", 5, permanent=False, exit_code=1))
    assert not record_failure(run, 3, Failure("y", 5, permanent=False, exit_code=1))


def test_lost_peers_do_not_fail_the_run(run: Run) -> None:
    failure = Failure(LOST_PEER, step=0, permanent=False, exit_code=1)
    assert not any(record_failure(run, attempt, failure) for attempt in (1, 2, 3, 4))


def test_an_attempt_without_failure_resets_the_count(run: Run) -> None:
    failure = Failure("x", 4, permanent=False, exit_code=1)
    record_failure(run, 1, failure)
    assert not record_failure(run, 3, failure)  # attempt 2 did not fail


def test_a_permanent_failure_replaces_the_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "failure.json"
    monkeypatch.setenv(FAILURE_ENV, str(place))
    Failure("peer gone", 3, permanent=False, exit_code=1).write()
    Failure("bad data", 3, permanent=True, exit_code=3).write()
    Failure("peer gone again", 3, permanent=False, exit_code=1).write()
    assert Failure.read(place) == Failure("bad data", 3, permanent=True, exit_code=3)


def test_a_failure_that_cannot_be_written_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is missing; a full disk has the same effect."""
    monkeypatch.setenv(FAILURE_ENV, str(tmp_path / "gone" / "failure.json"))
    Failure("lost contact", 3, permanent=False, exit_code=1).write()
    assert "cannot write the failure 'lost contact' for the entrypoint: [Errno 2]" in capsys.readouterr().err
