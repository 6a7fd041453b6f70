from rich.progress import Progress

from cpmbee_job.cli.console import mean_rate


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
