import pytest
from rich.progress import Progress

from cpmbee_job.cli.shared.console import mean_rate, printable


def test_work_that_comes_in_bursts_is_measured_from_its_beginning():
    now = 100.0
    bar = Progress(get_time=lambda: now, disable=True)
    bar.add_task("evaluate", total=40)
    assert mean_rate(bar.tasks[0]) is None
    now = 110.0
    for _ in range(20):
        bar.advance(bar.task_ids[0])
    assert mean_rate(bar.tasks[0]) == 2
    now = 120.0
    bar.advance(bar.task_ids[0], 20)
    now = 500.0
    assert mean_rate(bar.tasks[0]) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("今天　天气\thello", "今天　天气\thello"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("10%\r50%\r100%\r", "100%"),
        ("a\x07b\x1b", "a�b�"),
        ("abc\u202edef", "abc�def"),
    ],
)
def test_a_terminal_gets_nothing_that_it_would_obey(text: str, shown: str) -> None:
    assert printable(text) == shown
