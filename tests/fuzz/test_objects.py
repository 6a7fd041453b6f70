"""Any response of a Kubernetes API (or of a proxy before it) gives a readable status, or one of our errors."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import config

from cpmbee_job.cli.cluster.run_text import describe, summary, table
from cpmbee_job.errors import ClusterError, CpmbeeError
from cpmbee_job.launch.kube.api import ApiCluster
from cpmbee_job.launch.kube.fields import text_at
from cpmbee_job.launch.kube.protocol import PODS
from cpmbee_job.launch.kube.transport import Transport
from cpmbee_job.launch.runs.diagnosis import ClusterSnapshot, StoreSnapshot
from cpmbee_job.launch.runs.listing import of_job
from cpmbee_job.launch.runs.status import describe_run
from tests.fuzz.fuzzing import altered, corpus, examples
from tests.paths import GOLDEN
from tests.unit.launch.api_server import Answer, ApiServer, api_server, pod, status

CASES = [json.loads(path.read_text()) for path in sorted((GOLDEN / "status").iterdir())]
BEAT = {"state": "running", "step": 30, "total_steps": 120, "epoch": 1, "loss": 1, "tokens_per_s": 1.5, "eta_s": 90,
        "updated_at": "2026-01-31T23:59:59Z", "stepped_at": "2026-01-31T23:59:59Z",
        "best": {"step": 2, "loss": 1}}  # fmt: skip
RESULT = {"state": "failed", "reason": "x", "ended_at": "2026-01-31T23:59:59Z", "exit_code": 3, "steps": 4}
NOW = datetime(2026, 2, 1, tzinfo=UTC)
PAGE = {"items": [pod("a"), pod("b")], "metadata": {"resourceVersion": "3", "continue": ""}}
EVENT = {"type": "ADDED", "object": pod("c", 4)}


def look(seen: Any, beat: Any = None, result: Any = None) -> None:
    objects = {key: seen[key] for key in ("pods", "events") if isinstance(seen.get(key), list)}
    objects = {key: [one for one in found if isinstance(one, dict)] for key, found in objects.items()}
    job = seen.get("job") if isinstance(seen.get("job"), dict) else None
    in_store = StoreSnapshot(heartbeat=beat if isinstance(beat, dict) else None, result=result)
    run = describe_run("a", "r1", "s3://b/a/r1", ClusterSnapshot(job=job, **objects), in_store, now=NOW)
    assert json.loads(run.model_dump_json())
    assert describe(run, NOW, all_pods=True)
    assert summary(run)
    if job is not None:
        assert table([of_job(job)], NOW)


@pytest.mark.parametrize("data", corpus("objects"))
def test_known_objects(data: bytes) -> None:
    document = json.loads(data)
    look(document, document.get("beat"), document.get("result"))


@examples
@given(altered(CASES), altered([BEAT]), st.none() | altered([RESULT]))
def test_arbitrary_objects_and_documents(seen: Any, beat: Any, result: Any) -> None:
    look(seen, beat, result)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server() as script:
        yield script


@pytest.fixture(scope="module")
def cluster(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiCluster:
    file = server.kubeconfig(tmp_path_factory.mktemp("kube"))
    return ApiCluster(Transport(lambda: config.new_client_from_config(file), pause=lambda _: None), "team")


@examples
@given(altered([PAGE]))
def test_arbitrary_lists(server: ApiServer, cluster: ApiCluster, page: Any) -> None:
    server.answers = [Answer(body=page), Answer(body=PAGE)]
    try:
        assert all(text_at(item, "metadata", "uid") for item in cluster.list(PODS))
    except ClusterError as error:
        assert error.message  # noqa: PT017


@examples
@given(st.lists(altered([EVENT]), min_size=1, max_size=3))
def test_arbitrary_watch_events(server: ApiServer, cluster: ApiCluster, events: list[Any]) -> None:
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    server.answers = [Answer(body=PAGE), Answer(body=[lines]), Answer(body=PAGE | {"items": []})]
    seen = cluster.watch(PODS, {})
    for _ in range(8):
        change = next(seen)
        assert change is None or text_at(change[1], "metadata", "uid")


@examples
@given(
    st.sampled_from([400, 401, 403, 404, 409, 410, 422, 500]), altered([status(0, "no", details={"causes": [{}]}).body])
)
def test_arbitrary_error_responses(server: ApiServer, cluster: ApiCluster, code: int, body: Any) -> None:
    server.answers = [Answer(code, body)]
    with pytest.raises(CpmbeeError):
        cluster.get(PODS, "a")
