import pytest
from rich.progress import Progress

from cpmbee_job.cli.shared.console import columns, mean_rate, printable


def test_the_rate_is_the_mean_since_the_start() -> None:
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
def test_control_sequences_are_removed(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_columns_are_aligned_and_never_truncated() -> None:
    long = "x" * 300
    lines = columns([("a", "", "b"), ("aaa", "", long)], {"a": "red"})
    assert [line.plain for line in lines] == ["a    b", f"aaa  {long}"]
    assert lines[0].spans[0].style == "red"
