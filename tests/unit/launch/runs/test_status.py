"""What `status` reports. Most cases are objects of a real cluster (Kubernetes 1.34, operator 1.9.3), shortened."""

import copy
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.diagnosis import ClusterSnapshot, StoreSnapshot
from cpmbee_job.launch.runs.status import RunStatus, describe_run
from cpmbee_job.spec import JobSpec, parse_spec
from tests.paths import GOLDEN

CASES = GOLDEN / "status"
URL = "s3://bucket/runs/a/0123456789ab"


def case(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


NOTHING = StoreSnapshot()


def describe(seen: dict[str, Any], in_store: StoreSnapshot = NOTHING, **more: Any) -> RunStatus:
    in_cluster = ClusterSnapshot(job=seen["job"], pods=seen["pods"], events=seen["events"], **more)
    return describe_run("a", "0123456789ab", URL, in_cluster, in_store, now=now_of(seen))


def now_of(seen: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(seen["now"])


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def spec(*overrides: str) -> JobSpec:
    text = "name: a\nmodel: m/\ndata: {train: t.jsonl}\noutput: s3://bucket/runs\n"
    return parse_spec(text, source="job.yaml", overrides=overrides)


def heartbeat(seen: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a heartbeat of this moment."""
    at = stamp(now_of(seen))
    document = {"state": "running", "attempt": 2, "world_size": 2, "step": 30, "total_steps": 120, "epoch": 1}
    document |= {"loss": 0.5, "tokens_per_s": 1234.5, "eta_s": 90, "updated_at": at, "stepped_at": at}
    return document | {"best": {"step": 20, "loss": 0.4}} | fields


REASONS = {
    "bad-image": "worker 0: cannot pull image registry.example/nobody/nothing:7 (ImagePullBackOff): failed to ",
    "bad-name": "worker 0: `image` registry.example/Nobody//x is not a valid image name (InvalidImageName):",
    "never-pull": "worker 0: image registry.example/not-here:1 is not on the node, and cluster.image_pull_policy is",
    "big-cpu": "2 workers (0, 1): Unschedulable: 0/1 nodes are available: 1 Insufficient cpu (100 requested, "
    "workers.cpu), 1 Insufficient memory (900Gi requested, workers.memory)",
    "gpu": "worker 0: Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu (8 requested, "
    "workers.gpus)",
    "selector": "worker 0: Unschedulable: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector "
    "(nvidia.com/gpu.product=NVIDIA-H200, zone=b, workers.gpu_product, cluster.node_selector)",
    "claim": 'worker 0: Unschedulable: persistentvolumeclaim "models" not found (cluster.cache_claim)',
    "secret": "worker 0: cannot create container pytorch (CreateContainerConfigError): "
    'secret "s3-credentials" not found',
    "key": "worker 0: cannot create container pytorch (CreateContainerConfigError): couldn't find key "
    "AWS_ACCESS_KEY_ID in Secret sad/half",
    "root": "worker 0: cannot create container pytorch (CreateContainerConfigError): container's runAsUser breaks "
    "non-root policy",
    "volume": 'worker 0: cannot mount a volume (FailedMount): MountVolume.SetUp failed for volume "ca" : configmap '
    '"company-ca" not found',
    "no-command": "worker 0: cannot start training (StartError): failed to create containerd task:",
    "crash": "worker 0: training failed with exit code 4: one | error: [bold]no bucket[/bold] runs; CrashLoopBackOff, ",
    "init": "worker 0: the init step failed with exit code 4: reading data | error: no credentials for AWS; "
    "CrashLoopBackOff, restart ",
    "oom": "worker 0: training ran out of memory (OOMKilled, limit 32Mi, workers.memory); CrashLoopBackOff, restart ",
    "init-oom": "worker 0: the init step ran out of memory (OOMKilled, limit 24Mi, workers.memory)",
    "evict": "worker 0 was Evicted ",
    "quota": "cannot create 1 of the pods (FailedCreatePod): exceeded quota: gpus, requested: requests.cpu=100m, "
    "used: requests.cpu=300m, limited: requests.cpu=300m",
    "psa": 'cannot create pods (FailedCreatePod): violates PodSecurity "restricted:latest": host namespaces',
    "no-account": "cannot create pods (FailedCreatePod): error looking up service account sad/trainer: "
    'serviceaccount "trainer" not',
    "no-priority": "cannot create pods (FailedCreatePod): no PriorityClass with name very-high was found",
    "kueue": "waits in the Kueue LocalQueue team-a",
}
PHASES = {"kueue": "queued", "good": "preparing", "preparing": "preparing", "fails": "failed", "quota": "preparing"}
PHASES |= dict.fromkeys(("crash", "init", "oom", "init-oom", "no-command", "evict"), "preparing")


@pytest.mark.parametrize("name", REASONS)
def test_explains_the_problem(name: str) -> None:
    run = describe(case(name))
    assert run.problems[0].startswith(REASONS[name])
    assert len(run.problems) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_phase(name: str) -> None:
    assert describe(case(name)).phase == PHASES.get(name, "pending")


def test_a_healthy_run_has_no_problems() -> None:
    seen = case("good")
    run = describe(seen, StoreSnapshot(spec=spec(), heartbeat=heartbeat(seen)))
    assert (run.phase, run.problems, run.ended, run.exit_code) == ("running", (), False, None)
    assert (run.step, run.progress, run.eta_s, run.loss, run.tokens_per_s) == (30, 0.25, 90, 0.5, 1234.5)
    assert run.best is not None
    assert run.best.loss == 0.4
    assert (run.attempt, run.world_size, run.workers, [pod.index for pod in run.pods]) == (2, 2, 2, [0, 1])


def test_a_run_is_running_until_its_result_is_written() -> None:
    seen = case("good")
    assert describe(seen, StoreSnapshot(heartbeat=heartbeat(seen, state="succeeded"))).phase == "running"


def test_an_interrupted_run_is_preparing() -> None:
    seen = case("good")
    run = describe(seen, StoreSnapshot(heartbeat=heartbeat(seen, state="interrupted")))
    assert (run.phase, run.problems) == ("preparing", ("training was interrupted 0 s ago and is restarting",))


def test_explains_a_failure_without_a_result_by_the_last_event() -> None:
    run = describe(case("fails"))
    assert (run.phase, run.ended, run.exit_code) == ("failed", True, 100)
    assert run.reason == (
        "Job fails-0123456789ab has failed because it has reached the specified backoff limit; "
        "worker 0: training failed with exit code 3: error: data.jsonl:7: no <ans>"
    )


def test_failed_takes_precedence_over_later_conditions() -> None:
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
def test_the_result_takes_precedence(result: dict[str, Any], phase: str, code: int) -> None:
    run = describe(case("crash"), StoreSnapshot(result=result))
    assert (run.phase, run.ended, run.exit_code, run.reason) == (phase, True, code, result["reason"])
    assert run.problems == ()


def test_the_best_score_comes_from_the_result() -> None:
    result = {"state": "succeeded", "steps": 120, "scores": {"eval_loss": 0.25, "best_step": 100}}
    run = describe(case("good"), StoreSnapshot(result=result))
    assert run.best is not None
    assert (run.best.loss, run.best.step, run.step) == (0.25, 100, 120)


def succeeded(seconds_ago: float) -> dict[str, Any]:
    seen = case("good")
    end = stamp(now_of(seen) - timedelta(seconds=seconds_ago))
    seen["job"]["status"]["conditions"].append({"type": "Succeeded", "status": "True", "lastTransitionTime": end})
    return seen


def test_succeeded_pods_without_a_result_are_a_failure_after_a_while() -> None:
    assert not describe(succeeded(10)).ended
    run = describe(succeeded(90))
    assert (run.phase, run.exit_code) == ("failed", 100)
    assert "no result" in str(run.reason)


def test_success_is_not_the_end_until_the_store_confirms_it() -> None:
    run = describe(succeeded(90), StoreSnapshot(known=False))
    assert (run.phase, run.ended, run.exit_code) == ("succeeded", False, None)


def test_a_run_without_objects_result_and_heartbeat_is_lost() -> None:
    seen = case("good") | {"job": None, "pods": []}
    old = stamp(now_of(seen) - timedelta(hours=3))
    run = describe(seen, StoreSnapshot(spec=spec(), heartbeat=heartbeat(seen, updated_at=old)))
    assert (run.phase, run.ended, run.exit_code) == ("lost", True, 100)
    assert "no recent heartbeat (the last was 3 h 0 min ago)" in str(run.reason)
    assert "cpmbee-job resume a/0123456789ab" in str(run.reason)


def test_explains_a_submit_that_was_interrupted() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreSnapshot(spec=spec()))
    assert run.phase == "lost"
    assert "no PyTorchJob was created" in str(run.reason)


def test_an_unreachable_cluster_is_not_the_end() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreSnapshot(spec=spec()), known=False)
    assert (run.phase, run.ended) == ("lost", False)


def test_an_unreachable_store_is_not_the_end() -> None:
    run = describe(case("good") | {"job": None, "pods": []}, StoreSnapshot(known=False))
    assert (run.phase, run.ended, run.exit_code) == ("lost", False, None)


def test_a_failure_is_the_end_after_a_while_without_the_store() -> None:
    seen = case("fails")
    seen["now"] = stamp(datetime.fromisoformat(seen["job"]["status"]["completionTime"]) + timedelta(seconds=10))
    run = describe(seen, StoreSnapshot(known=False))
    assert (run.phase, run.ended) == ("failed", False)
    assert "no <ans>" in run.problems[0]
    run = describe(case("fails"), StoreSnapshot(known=False))
    assert (run.ended, run.exit_code) == (True, 100)


def test_a_fresh_heartbeat_alone_means_running() -> None:
    seen = case("good") | {"job": None, "pods": []}
    assert describe(seen, StoreSnapshot(heartbeat=heartbeat(seen))).phase == "running"


def test_a_heartbeat_older_than_the_job_does_not_count() -> None:
    seen = case("good")
    before = stamp(datetime.fromisoformat(seen["job"]["metadata"]["creationTimestamp"]) - timedelta(minutes=1))
    assert describe(seen, StoreSnapshot(heartbeat=heartbeat(seen, updated_at=before))).phase == "preparing"


def test_training_without_steps_is_stuck() -> None:
    seen = case("good")
    in_store = StoreSnapshot(
        spec=spec(), heartbeat=heartbeat(seen, stepped_at=stamp(now_of(seen) - timedelta(minutes=12)))
    )
    run = describe(seen, in_store)
    assert run.phase == "running"
    assert run.problems == ("stuck: no step for 12 min; its workers restart after 15 min (train.stall_timeout)",)


def test_slow_steps_are_not_stuck() -> None:
    seen = case("good")
    before = stamp(now_of(seen) - timedelta(minutes=12))
    in_store = StoreSnapshot(heartbeat=heartbeat(seen, stepped_at=before, eta_s=90 * 600))  # 10 min a step
    assert describe(seen, in_store).problems == ()


def test_an_old_heartbeat_is_a_problem() -> None:
    seen = case("good")
    seen["now"] = stamp(now_of(seen) + timedelta(minutes=5))
    old = {"updated_at": case("good")["now"], "stepped_at": case("good")["now"]}
    assert (
        describe(seen, StoreSnapshot(heartbeat=heartbeat(seen, **old))).problems[0].startswith("no heartbeat for 5 min")
    )


def test_training_that_waits_for_workers_is_a_problem() -> None:
    seen = case("big-cpu")
    seen["job"]["spec"]["elasticPolicy"]["minReplicas"] = 2
    seen["pods"][0] = case("good")["pods"][0]
    run = describe(seen)
    assert run.phase == "preparing"
    assert run.problems[1] == "training waits for more workers: 1 of at least 2 are running"


def test_training_that_does_not_begin_is_a_problem() -> None:
    seen = case("good")
    seen["now"] = stamp(now_of(seen) + timedelta(minutes=20))
    assert "but training has not begun; see `logs`" in describe(seen).problems[0]


def test_shows_the_message_of_kueue() -> None:
    message = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu"
    workload = {"status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": message}]}}
    assert describe(case("kueue"), workload=workload).problems == (f"waits in the Kueue LocalQueue team-a: {message}",)


def test_an_operator_that_ignores_the_job_is_a_problem() -> None:
    seen = case("kueue") | {"events": []}
    seen["job"] |= {"status": {}}
    seen["job"]["spec"]["runPolicy"]["suspend"] = False
    assert "the training operator has not processed the PyTorchJob for" in describe(seen).problems[0]


def test_512_workers_with_the_same_problem_are_one_line() -> None:
    seen = case("gpu")
    pods = [copy.deepcopy(seen["pods"][0]) for _ in range(512)]
    for index, pod in enumerate(pods):
        pod["metadata"]["name"] = f"a-worker-{index}"
        pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] = str(index)
    random.Random(0).shuffle(pods)
    run = describe(seen | {"pods": pods})
    assert run.problems[0].startswith("512 workers (0, 1, 2, ...): Unschedulable")
    assert [pod.index for pod in run.pods] == list(range(512))


def test_the_worst_problem_comes_first() -> None:
    seen = case("crash")
    others = [copy.deepcopy(case("gpu")["pods"][0]) for _ in range(3)]
    for index, pod in enumerate(others, 1):
        pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] = str(index)
    run = describe(seen | {"pods": [*others, *seen["pods"]]})
    assert [problem.split(":")[0] for problem in run.problems] == ["worker 0", "3 workers (1, 2, 3)"]


def test_a_pod_that_was_just_scheduled_is_no_problem_and_hides_none() -> None:
    seen = case("volume") | {"events": []}
    (fresh,) = seen["pods"]
    slow = copy.deepcopy(fresh)
    slow["metadata"]["labels"]["training.kubeflow.org/replica-index"] = "1"
    for condition in fresh["status"]["conditions"]:
        condition["lastTransitionTime"] = seen["now"]
    assert describe(seen | {"pods": [fresh]}).problems == ()
    (problem,) = describe(seen | {"pods": [fresh, slow]}).problems
    assert problem.startswith("worker 1: pulling image ")


def strange(item: Any, draw: random.Random) -> Any:
    """Return the object with parts missing, empty or of another type."""
    if draw.random() < 0.04:
        return draw.choice([None, "", 0, -1, True, [], {}, "x\x1b[31m", [None], {"": None}, 1e400])
    if isinstance(item, dict):
        return {key: strange(value, draw) for key, value in item.items() if draw.random() > 0.04}
    if isinstance(item, list):
        return [strange(value, draw) for value in item]
    return item


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_describes_malformed_objects(name: str) -> None:
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
    in_store = StoreSnapshot(spec=spec(), heartbeat=strange(heartbeat(seen), draw) or None)
    run = describe(seen, in_store)
    assert "\x1b" not in run.model_dump_json()


def test_describes_malformed_events() -> None:
    seen = case("volume")
    objects: list[Object] = [{}, {"involvedObject": None}, {"involvedObject": {"name": None}, "message": None}]
    assert describe(seen | {"events": objects}).phase == "pending"


def test_times_are_in_utc() -> None:
    assert datetime.fromisoformat(str(describe(case("good")).created_at)).tzinfo == UTC
