from datetime import UTC, datetime, timedelta
from typing import Any

from cpmbee_job.cli.cluster.run_text import describe, summary, table
from cpmbee_job.launch.runs.diagnosis import ClusterSnapshot, StoreSnapshot
from cpmbee_job.launch.runs.listing import RunEntry
from cpmbee_job.launch.runs.pods import PodStatus
from cpmbee_job.launch.runs.status import BestScore, RunStatus, describe_run

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
EMPTY = describe_run("ccpm", "0a1b", "s3://b/runs/ccpm/0a1b", ClusterSnapshot(), StoreSnapshot(), now=NOW).model_copy(
    update={"phase": "running", "reason": None, "ended": False, "namespace": "train"}
)


def shown(run: RunStatus, all_pods: bool = False) -> list[str]:
    return [line.plain for line in describe(run, NOW, all_pods)]


def pods(count: int, **fields: str) -> tuple[PodStatus, ...]:
    given = {"state": "running", "cause": None, "reason": None, "node": "node-1", "restarts": 0} | fields
    return tuple(PodStatus(name=f"ccpm-0a1b-worker-{index}", index=index, **given) for index in range(count))


def test_a_running_run() -> None:
    numbers: dict[str, Any] = {"step": 30, "total_steps": 120, "progress": 0.25, "epoch": 1, "eta_s": 754, "loss": 0.5}
    numbers |= {"tokens_per_s": 12345.6, "best": BestScore(step=20, loss=0.4), "attempt": 2, "world_size": 2}
    more = {"restarts": 1, "updated_at": (NOW - timedelta(seconds=3)).isoformat(), "pods": pods(2), "workers": 2}
    assert shown(EMPTY.model_copy(update=numbers | more)) == [
        "ccpm/0a1b  running  s3://b/runs/ccpm/0a1b",
        "  step 30 of 120 (25%), epoch 1, ETA 13 min",
        "  loss 0.5000, 12,346 tokens/s, best eval loss 0.4000 at step 20",
        "  attempt 2, 2 processes, 1 container restart, last heartbeat 3 s ago",
        "  2 pods in namespace train: 2 running",
        "    ccpm-0a1b-worker-0  running  node-1",
        "    ccpm-0a1b-worker-1  running  node-1",
    ]


def test_512_pods_are_counted_unless_all_are_requested() -> None:
    run = EMPTY.model_copy(update={"pods": pods(500) + pods(12, state="pending", reason="x"), "workers": 600})
    assert shown(run)[1:] == ["  512 of 600 pods in namespace train: 500 running, 12 pending"]
    assert len(shown(run, all_pods=True)) == 2 + 512


def test_one_of_several_pods_is_in_the_plural() -> None:
    assert shown(EMPTY.model_copy(update={"pods": pods(1), "workers": 2}))[1].startswith("  1 of 2 pods in namespace")


def test_a_reason_that_is_shown_above_is_not_repeated() -> None:
    run = EMPTY.model_copy(
        update={"pods": pods(2, state="pending", reason="no GPU"), "problems": ("2 workers (0, 1): no GPU",)}
    )
    lines = shown(run)
    assert lines[1] == "  ! 2 workers (0, 1): no GPU"
    assert lines[-1] == "    ccpm-0a1b-worker-1  pending  node-1"


def test_messages_are_not_markup() -> None:
    run = EMPTY.model_copy(update={"problems": ("worker 0: [bold]x[/nothing]",)})
    assert "  ! worker 0: [bold]x[/nothing]" in shown(run)


def test_the_summary() -> None:
    run = EMPTY.model_copy(update={"step": 3, "total_steps": 4, "loss": 0.5, "problems": ("it hangs", "more")})
    assert summary(run) == "running, step 3/4, loss 0.5000, it hangs"


def test_a_long_reason_is_truncated_in_the_table() -> None:
    entry = RunEntry(
        name="a", run_id="1", url="u", phase="failed", reason="x" * 500, workers=1, step=None, total_steps=None,
        loss=None, created_at=None, updated_at=None, ended_at=None,
    )  # fmt: skip
    assert len(table([entry], NOW)[1].plain) < 150
