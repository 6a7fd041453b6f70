"""What `status` says. Most cases are objects of a real cluster (Kubernetes 1.34, training operator 1.9.3), trimmed."""

import copy
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.status import RunStatus, StoreRecord, describe_run
from cpmbee_job.spec import JobSpec, parse_spec
from tests.paths import GOLDEN

CASES = GOLDEN / "status"
URL = "s3://bucket/runs/a/0123456789ab"


def case(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


NOTHING = StoreRecord()


def describe(seen: dict[str, Any], record: StoreRecord = NOTHING, **more: Any) -> RunStatus:
    given: dict[str, Any] = {key: seen[key] for key in ("job", "pods", "events")}
    given |= {"name": "a", "run_id": "0123456789ab", "url": URL, "now": now_of(seen)}
    return describe_run(**given | more, record=record)


def now_of(seen: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(seen["now"])


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def spec(*overrides: str) -> JobSpec:
    text = "name: a\nmodel: m/\ndata: {train: t.jsonl}\noutput: s3://bucket/runs\n"
    return parse_spec(text, source="job.yaml", overrides=overrides)


def beat(seen: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A heartbeat of just now."""
    at = stamp(now_of(seen))
    record = {"state": "running", "attempt": 2, "world_size": 2, "step": 30, "total_steps": 120, "epoch": 1}
    record |= {"loss": 0.5, "tokens_per_s": 1234.5, "eta_s": 90, "updated_at": at, "stepped_at": at}
    return record | {"best": {"step": 20, "loss": 0.4}} | fields


REASONS = {
    "bad-image": "worker 0: image registry.example/nobody/nothing:7 can't be pulled: failed to do request: Head",
    "bad-name": "worker 0: `image` registry.example/Nobody//x is no valid name:",
    "never-pull": "worker 0: image registry.example/not-here:1 is not on the node, and cluster.image_pull_policy is",
    "big-cpu": "2 workers (0, 1): no node takes it (0 of 1): 1 lacks cpu (100 asked for, workers.cpu), "
    "1 lacks memory (900Gi asked for, workers.memory)",
    "gpu": "worker 0: no node takes it (0 of 1): 1 lacks nvidia.com/gpu (8 asked for, workers.gpus)",
    "selector": "worker 0: no node takes it (0 of 1): 1 lacks nvidia.com/gpu.product=NVIDIA-H200, zone=b "
    "(workers.gpu_product, cluster.node_selector)",
    "claim": "worker 0: no node takes it: there is no volume claim models in the namespace (cluster.cache_claim)",
    "secret": 'worker 0: container pytorch can\'t be set up: secret "s3-credentials" not found',
    "key": "worker 0: container pytorch can't be set up: couldn't find key AWS_ACCESS_KEY_ID in Secret sad/half",
    "root": "worker 0: container pytorch can't be set up: container's runAsUser breaks non-root policy",
    "volume": 'worker 0: a volume can\'t be mounted: MountVolume.SetUp failed for volume "ca" : configmap '
    '"company-ca" not found',
    "no-command": "worker 0: training can't be started: failed to create containerd task:",
    "crash": "worker 0: training failed with exit code 4: one | error: [bold]no bucket[/bold] runs; start ",
    "init": "worker 0: the init step failed with exit code 4: reading data | error: no credentials for AWS; start ",
    "oom": "worker 0: training was killed: out of memory (limit 32Mi, workers.memory); start ",
    "init-oom": "worker 0: the init step was killed: out of memory (limit 24Mi, workers.memory)",
    "evict": "worker 0 was evicted ",
    "quota": "1 of its pods can't be made: quota gpus of the namespace is exhausted: 100m requests.cpu asked for, "
    "300m of 300m in use",
    "psa": "its pods can't be made: the namespace's Pod Security standard restricted:latest refuses them: host ",
    "no-account": 'its pods can\'t be made: error looking up service account sad/trainer: serviceaccount "trainer" not',
    "no-priority": "its pods can't be made: no PriorityClass with name very-high was found",
    "kueue": "waits in Kueue's queue team-a",
}
PHASES = {"kueue": "queued", "good": "preparing", "preparing": "preparing", "fails": "failed", "quota": "preparing"}
PHASES |= dict.fromkeys(("crash", "init", "oom", "init-oom", "no-command", "evict"), "preparing")


@pytest.mark.parametrize("name", REASONS)
def test_what_is_in_the_way_is_said(name: str) -> None:
    run = describe(case(name))
    assert run.problems[0].startswith(REASONS[name])
    assert len(run.problems) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_phase(name: str) -> None:
    assert describe(case(name)).phase == PHASES.get(name, "pending")


def test_a_healthy_run_has_no_problems() -> None:
    seen = case("good")
    run = describe(seen, StoreRecord(spec=spec(), status=beat(seen)))
    assert (run.phase, run.problems, run.ended, run.exit_code) == ("running", (), False, None)
    assert (run.step, run.progress, run.eta_s, run.loss, run.tokens_per_s) == (30, 0.25, 90, 0.5, 1234.5)
    assert run.best is not None
    assert run.best.loss == 0.4
    assert (run.attempt, run.world_size, run.workers, [pod.index for pod in run.pods]) == (2, 2, 2, [0, 1])


def test_a_run_whose_end_is_being_written_still_runs() -> None:
    seen = case("good")
    assert describe(seen, StoreRecord(status=beat(seen, state="succeeded"))).phase == "running"


def test_an_interrupted_run_starts_again() -> None:
    seen = case("good")
    run = describe(seen, StoreRecord(status=beat(seen, state="interrupted")))
    assert (run.phase, run.problems) == ("preparing", ("training was interrupted 0 s ago and starts again",))


def test_a_job_that_failed_without_a_result_is_told_by_the_last_event() -> None:
    run = describe(case("fails"))
    assert (run.phase, run.ended, run.exit_code) == ("failed", True, 100)
    assert run.reason == (
        "Job fails-0123456789ab has failed because it has reached the specified backoff limit; "
        "worker 0: training failed with exit code 3: error: data.jsonl:7: no <ans>"
    )


def test_failed_wins_over_later_conditions() -> None:
    seen = case("fails")
    seen["job"]["status"]["conditions"].append({"type": "Running", "status": "True"})
    assert describe(seen).phase == "failed"


def test_restarts_of_all_pods_are_summed() -> None:
    seen = case("good")
    for pod in seen["pods"]:
        pod["status"]["containerStatuses"][0]["restartCount"] = 3
    assert describe(seen).restarts == 6


@pytest.mark.parametrize(
    ("result", "phase", "code"),
    [
        ({"state": "succeeded", "reason": "all epochs"}, "succeeded", 0),
        ({"state": "failed", "reason": "data.jsonl:7: no <ans>", "exit_code": 3}, "failed", 3),
        ({"state": "failed", "reason": "x"}, "failed", 100),
        ({"state": "cancelled", "reason": "by request"}, "cancelled", 103),
        ({"state": "failed", "reason": "x", "exit_code": "three"}, "failed", 100),
    ],
)
def test_the_result_has_the_last_word(result: dict[str, Any], phase: str, code: int) -> None:
    run = describe(case("crash"), StoreRecord(result=result))
    assert (run.phase, run.ended, run.exit_code, run.reason) == (phase, True, code, result["reason"])
    assert run.problems == ()


def test_the_result_has_the_best_score() -> None:
    result = {"state": "succeeded", "steps": 120, "scores": {"eval_loss": 0.25, "best_step": 100}}
    run = describe(case("good"), StoreRecord(result=result))
    assert run.best is not None
    assert (run.best.loss, run.best.step, run.step) == (0.25, 100, 120)


def succeeded(seconds_ago: float) -> dict[str, Any]:
    seen = case("good")
    end = stamp(now_of(seen) - timedelta(seconds=seconds_ago))
    seen["job"]["status"]["conditions"].append({"type": "Succeeded", "status": "True", "lastTransitionTime": end})
    return seen


def test_pods_that_ended_well_without_a_result_are_a_failure_after_a_while() -> None:
    assert not describe(succeeded(10)).ended
    run = describe(succeeded(90))
    assert (run.phase, run.exit_code) == ("failed", 100)
    assert "no result" in str(run.reason)


def test_success_is_not_the_end_where_the_store_can_not_confirm_it() -> None:
    run = describe(succeeded(90), StoreRecord(known=False))
    assert (run.phase, run.ended, run.exit_code) == ("succeeded", False, None)


def test_a_run_without_objects_result_and_heartbeat_is_lost() -> None:
    seen = case("good") | {"job": None, "pods": []}
    old = stamp(now_of(seen) - timedelta(hours=3))
    run = describe(seen, StoreRecord(spec=spec(), status=beat(seen, updated_at=old)))
    assert (run.phase, run.ended, run.exit_code) == ("lost", True, 100)
    assert "last sign of life 3 h 0 min ago" in str(run.reason)
    assert "cpmbee-job resume a/0123456789ab" in str(run.reason)


def test_a_submit_that_died_half_way_is_told() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreRecord(spec=spec()))
    assert run.phase == "lost"
    assert "no PyTorchJob was made" in str(run.reason)


def test_silence_of_a_cluster_that_was_not_asked_is_no_end() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreRecord(spec=spec()), cluster_known=False)
    assert (run.phase, run.ended) == ("lost", False)


def test_silence_of_a_store_that_was_not_asked_is_no_end() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreRecord(known=False))
    assert (run.phase, run.ended, run.exit_code) == ("lost", False, None)


def test_a_failure_is_the_end_even_if_the_store_never_confirms_it() -> None:
    seen = case("fails")
    seen["now"] = stamp(datetime.fromisoformat(seen["job"]["status"]["completionTime"]) + timedelta(seconds=10))
    run = describe(seen, StoreRecord(known=False))
    assert (run.phase, run.ended) == ("failed", False)
    assert "no <ans>" in run.problems[0]
    run = describe(case("fails"), StoreRecord(known=False))
    assert (run.ended, run.exit_code) == (True, 100)


def test_a_fresh_heartbeat_is_life_without_any_object() -> None:
    seen = case("good") | {"job": None, "pods": []}
    assert describe(seen, StoreRecord(status=beat(seen))).phase == "running"


def test_a_heartbeat_from_before_the_job_is_not_its_own() -> None:
    seen = case("good")
    before = stamp(datetime.fromisoformat(seen["job"]["metadata"]["creationTimestamp"]) - timedelta(minutes=1))
    assert describe(seen, StoreRecord(status=beat(seen, updated_at=before))).phase == "preparing"


def test_no_step_for_long_is_stuck() -> None:
    seen = case("good")
    record = StoreRecord(spec=spec(), status=beat(seen, stepped_at=stamp(now_of(seen) - timedelta(minutes=12))))
    run = describe(seen, record)
    assert run.phase == "running"
    assert run.problems == ("stuck: no step for 12 min; after 15 min (train.stall_timeout) its workers start again",)


def test_slow_steps_are_not_stuck() -> None:
    seen = case("good")
    before = stamp(now_of(seen) - timedelta(minutes=12))
    record = StoreRecord(status=beat(seen, stepped_at=before, eta_s=90 * 600))  # 10 min a step
    assert describe(seen, record).problems == ()


def test_no_heartbeat_for_long_is_told() -> None:
    seen = case("good")
    seen["now"] = stamp(now_of(seen) + timedelta(minutes=5))
    old = {"updated_at": case("good")["now"], "stepped_at": case("good")["now"]}
    assert describe(seen, StoreRecord(status=beat(seen, **old))).problems[0].startswith("no sign of life for 5 min")


def test_training_that_waits_for_peers_is_told() -> None:
    seen = case("big-cpu")
    seen["job"]["spec"]["elasticPolicy"]["minReplicas"] = 2
    seen["pods"][0] = case("good")["pods"][0]
    run = describe(seen)
    assert run.phase == "preparing"
    assert run.problems[1] == "training waits for more workers: 1 of at least 2 are running"


def test_training_that_does_not_begin_is_told() -> None:
    seen = case("good")
    seen["now"] = stamp(now_of(seen) + timedelta(minutes=20))
    assert "but training has not begun; `logs` shows what they do" in describe(seen).problems[0]


def test_kueues_own_words_are_passed_on() -> None:
    said = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu"
    workload = {"status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": said}]}}
    assert describe(case("kueue"), workload=workload).problems == (f"waits in Kueue's queue team-a: {said}",)


def test_an_operator_that_does_not_look_is_told() -> None:
    seen = case("kueue") | {"events": []}
    seen["job"] |= {"status": {}}
    seen["job"]["spec"]["runPolicy"]["suspend"] = False
    assert "the training operator has not looked at it for" in describe(seen).problems[0]


def test_512_workers_with_one_trouble_are_one_line() -> None:
    seen = case("gpu")
    pods = [copy.deepcopy(seen["pods"][0]) for _ in range(512)]
    for index, pod in enumerate(pods):
        pod["metadata"]["name"] = f"a-worker-{index}"
        pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] = str(index)
    random.Random(0).shuffle(pods)
    run = describe(seen | {"pods": pods})
    assert run.problems[0].startswith("512 workers (0, 1, 2, ...): no node takes it")
    assert [pod.index for pod in run.pods] == list(range(512))


def test_the_worst_comes_first() -> None:
    seen = case("crash")
    others = [copy.deepcopy(case("gpu")["pods"][0]) for _ in range(3)]
    for index, pod in enumerate(others, 1):
        pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] = str(index)
    run = describe(seen | {"pods": [*others, *seen["pods"]]})
    assert [problem.split(":")[0] for problem in run.problems] == ["worker 0", "3 workers (1, 2, 3)"]


def test_a_pod_that_has_just_got_a_node_is_no_problem_nor_does_it_hide_one() -> None:
    seen = case("volume") | {"events": []}
    (fresh,) = seen["pods"]
    slow = copy.deepcopy(fresh)
    slow["metadata"]["labels"]["training.kubeflow.org/replica-index"] = "1"
    for condition in fresh["status"]["conditions"]:
        condition["lastTransitionTime"] = seen["now"]
    assert describe(seen | {"pods": [fresh]}).problems == ()
    (problem,) = describe(seen | {"pods": [fresh, slow]}).problems
    assert problem.startswith("worker 1: pulls ")


def strange(item: Any, draw: random.Random) -> Any:
    """The object with parts missing, empty or of another type."""
    if draw.random() < 0.04:
        return draw.choice([None, "", 0, -1, True, [], {}, "x\x1b[31m", [None], {"": None}, 1e400])
    if isinstance(item, dict):
        return {key: strange(value, draw) for key, value in item.items() if draw.random() > 0.04}
    if isinstance(item, list):
        return [strange(value, draw) for value in item]
    return item


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_strange_objects_are_described_all_the_same(name: str) -> None:
    draw = random.Random(name)
    seen = case(name)
    seen |= {
        "job": strange(seen["job"], draw),
        "pods": strange(seen["pods"], draw),
        "events": strange(seen["events"], draw),
    }
    seen["job"] = seen["job"] if isinstance(seen["job"], dict) else None
    for key in ("pods", "events"):
        seen[key] = [item for item in seen[key] if isinstance(item, dict)] if isinstance(seen[key], list) else []
    record = StoreRecord(spec=spec(), status=strange(beat(seen), draw) or None)
    run = describe(seen, record)
    assert "\x1b" not in run.model_dump_json()


def test_lists_of_events_may_be_strange_too() -> None:
    seen = case("volume")
    objects: list[Object] = [{}, {"involvedObject": None}, {"involvedObject": {"name": None}, "message": None}]
    assert describe(seen | {"events": objects}).phase == "pending"


def test_times_are_in_utc() -> None:
    assert datetime.fromisoformat(str(describe(case("good")).created_at)).tzinfo == UTC
