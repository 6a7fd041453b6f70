import pytest

from cpmbee_job.cli.cluster.attach import StateChanges


def test_a_message_that_differs_in_its_age_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    changes = StateChanges()
    for age in ("4 s", "50 s", "2 min"):
        changes.trouble(f"no result, and no recent heartbeat (the last was {age} ago)")
    assert capsys.readouterr().err.count("no recent heartbeat") == 1
