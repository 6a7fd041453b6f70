"""What the doctor reports, check by check: a healthy cluster in memory, with one thing wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from cpmbee_job.errors import ClusterError, PreflightError, UnreachableError
from cpmbee_job.launch.checks.doctor import examine_all
from cpmbee_job.launch.kube.protocol import (
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    KUBEFLOW_VERSIONS,
    KUEUE_VERSIONS,
    LOCAL_QUEUES,
    NAMESPACES,
    NODES,
    PODS,
    PYTORCHJOBS,
    QUOTAS,
    SECRETS,
)
from cpmbee_job.spec import StorageSpec, parse_spec
from tests.fake_cluster import FakeCluster

JOB = """\
name: a
image: r/t:1
model: s3://m/
data: {train: s3://d/}
output: s3://o/
workers: {count: 2, cpu: 1, memory: 1Gi, ephemeral: 1Gi}
storage: {secret: s3}
"""
WEBHOOK = ClusterError('admission webhook "validator.pytorchjob.kubeflow.org" denied the request: spec: no pytorch')


def denied(resource):
    return ClusterError(f'{resource} is forbidden: User "me" cannot list resource "{resource}" in API group ""')


class HealthyCluster(FakeCluster):
    """Has an operator whose webhook refuses the doctor's test job."""

    def __init__(self):
        super().__init__()
        self.put(KUBEFLOW_VERSIONS, {"metadata": {"name": "v1"}, "resources": [{"name": "pytorchjobs"}]})
        containers = {"spec": {"containers": [{"image": "kubeflow/training-operator:v1.9.3"}]}}
        deployment = {"spec": {"template": containers}, "status": {"readyReplicas": 1}}
        self.put(DEPLOYMENTS, {"metadata": {"name": "training-operator", "namespace": "kubeflow"}, **deployment})
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.put(NAMESPACES, {"metadata": {"name": "default", "labels": labels}})
        self.put(NODES, node("n1"))
        self.put(SECRETS, secret("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        self.webhook: Exception | None = WEBHOOK

    def create(self, kind, manifest, **options):
        if kind == PYTORCHJOBS and manifest["metadata"]["name"] == "cpmbee-job-doctor" and self.webhook:
            raise self.webhook
        return super().create(kind, manifest, **options)


def node(name, gpus=0):
    amounts = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110"}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "A100"} if gpus else {}},
        "spec": {},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def secret(*keys):
    fields = {"fieldsV1": {"f:data": {".": {}, **{f"f:{key}": {} for key in keys}}}}
    return {"metadata": {"name": "s3", "managedFields": [fields]}, "data": dict.fromkeys(keys, "hush")}


def examine(cluster, *overrides):
    """Return the first result of each check."""
    spec = parse_spec(JOB, source="job.yaml", overrides=overrides)
    found = {}
    for result in examine_all(lambda: cluster, spec, None, StorageSpec(endpoint_url="http://127.0.0.1:1")):
        found.setdefault(result.check, result)
    return found


@pytest.fixture(autouse=True)
def _no_store(monkeypatch):
    """Make the store checks, which have tests of their own, fail at once for missing credentials."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def test_a_healthy_cluster_has_no_problem():
    found = examine(HealthyCluster())
    cluster = {check: f for check, f in found.items() if check not in ("model", "data.train")}
    assert {f.state for f in cluster.values()} == {"ok"}, cluster
    assert "training-operator:v1.9.3" in found["operator"].detail
    assert "enforces Pod Security 'restricted'" in found["namespace"].detail
    assert found["room"].detail == "2 pods fit"


def test_checks_the_cluster_without_a_job():
    found = [f.check for f in examine_all(HealthyCluster, None, None, StorageSpec())]
    assert {"cluster", "operator", "permissions", "GPUs"} <= set(found)
    assert not {"job", "room", "model", "output"} & set(found)


def test_checks_the_store_without_a_cluster(tmp_path):
    def connect():
        raise PreflightError("cannot connect to a Kubernetes cluster")

    found = [(f.check, f.state) for f in examine_all(connect, None, str(tmp_path), StorageSpec())]
    assert found[1:] == [("cluster", "problem"), ("output", "ok"), ("conditional put", "ok")]


def test_an_unreachable_cluster_is_reported_once():
    class Silent(HealthyCluster):
        def server_version(self):
            raise UnreachableError("connection refused")

    found = examine(Silent())
    assert found["cluster"].state == "problem"
    assert "permissions" not in found


def test_invalid_credentials_are_reported_once():
    cluster = HealthyCluster()
    cluster.refusals["get", KUBEFLOW_VERSIONS] = ClusterError("the Kubernetes API does not accept the credentials")
    found = examine(cluster)
    assert found["cluster"].state == "problem"
    assert "permissions" not in found


def test_a_differing_clock_is_reported():
    class Late(HealthyCluster):
        def server_time(self):
            return datetime.now(UTC) - timedelta(minutes=5)

    assert "differs from the cluster's clock by" in examine(Late())["clock"].detail


def test_missing_pytorchjobs_are_a_problem():
    cluster = HealthyCluster()
    cluster.objects[KUBEFLOW_VERSIONS].clear()
    assert examine(cluster)["PyTorchJob"].state == "problem"


def test_an_unreachable_webhook_is_a_problem():
    cluster = HealthyCluster()
    cluster.webhook = UnreachableError('Internal error occurred: failed calling webhook "v"')
    assert examine(cluster)["webhook"].state == "problem"


def test_a_missing_webhook_is_a_warning():
    cluster = HealthyCluster()
    cluster.webhook = None
    assert examine(cluster)["webhook"].state == "warning"


def test_an_operator_that_is_not_ready_is_a_problem():
    cluster = HealthyCluster()
    cluster.objects[DEPLOYMENTS]["training-operator"]["status"] = {}
    assert examine(cluster)["operator"].state == "problem"


def test_a_missing_permission_is_reported_with_the_commands_that_require_it():
    cluster = HealthyCluster()
    cluster.denied = {("get", "pods/log")}
    result = examine(cluster)["permissions"]
    assert result.state == "warning"
    assert result.detail == (
        "cannot get pods/log in default; this limits the commands logs, evaluate --on-cluster, predict --on-cluster"
    )


def test_a_missing_permission_to_create_jobs_is_a_problem():
    cluster = HealthyCluster()
    cluster.denied = {("create", "pytorchjobs")}
    assert examine(cluster)["permissions"].state == "problem"


@pytest.mark.parametrize(
    ("verb", "kind", "check"),
    [
        ("list", NODES, "nodes"),
        ("list", QUOTAS, "quota"),
        ("get", NAMESPACES, "namespace"),
        ("get", SECRETS, "storage.secret"),
        ("list", DEPLOYMENTS, "operator"),
        ("list", PODS, "pods"),
    ],
)
def test_a_missing_permission_to_read_is_not_a_problem(verb, kind, check):
    cluster = HealthyCluster()
    cluster.refusals[verb, kind] = denied(kind.rpartition("/")[2])
    found = examine(cluster)
    assert found[check].state == "not_permitted"
    assert not [f for f in found.values() if f.state == "problem" and f.check not in ("model", "data.train")]


def test_a_missing_namespace_is_a_problem():
    cluster = HealthyCluster()
    cluster.objects[NAMESPACES].clear()
    assert examine(cluster)["namespace"].state == "problem"


def test_counts_free_gpus():
    cluster = HealthyCluster()
    cluster.put(NODES, node("g1", gpus=8))
    taken = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "3"}}}], "nodeName": "g1"}
    cluster.put(PODS, {"metadata": {"name": "p"}, "spec": taken, "status": {"phase": "Running"}})
    assert examine(cluster)["GPUs"].detail == "A100: 5 free of 8 on 1 node"


def test_a_pod_that_fits_no_node_is_a_problem():
    found = examine(HealthyCluster(), "workers.memory=64Gi")
    assert found["room"].state == "problem"
    assert "1 node with at most 32Gi memory, a pod requests 64Gi" in found["room"].detail


def test_missing_gpus_are_a_problem():
    assert examine(HealthyCluster(), "workers.gpus=1")["GPUs"].state == "problem"


def test_an_exhausted_quota_is_a_problem():
    cluster = HealthyCluster()
    status = {"hard": {"requests.cpu": "4"}, "used": {"requests.cpu": "3"}}
    cluster.put(QUOTAS, {"metadata": {"name": "q"}, "spec": {}, "status": status})
    assert examine(cluster)["quota"].detail == "q: requests.cpu: the job requests 2, 3 of 4 are used"


def test_a_queue_without_kueue_is_a_problem():
    assert examine(HealthyCluster(), "cluster.queue=team")["Kueue"].state == "problem"


@pytest.mark.parametrize(("active", "state"), [("True", "ok"), ("False", "problem")])
def test_the_queue_must_be_active(active, state):
    cluster = HealthyCluster()
    cluster.put(KUEUE_VERSIONS, {"metadata": {"name": "v1beta1"}})
    conditions = [{"type": "Active", "status": active, "message": "its ClusterQueue is stopped"}]
    cluster.put(LOCAL_QUEUES, {"metadata": {"name": "team"}, "status": {"conditions": conditions}})
    assert examine(cluster, "cluster.queue=team")["Kueue"].state == state


def test_a_missing_secret_is_reported_with_the_command_that_creates_it():
    result = examine(HealthyCluster(), "storage.secret=other")["storage.secret"]
    assert result.state == "problem"
    assert "kubectl -n default create secret generic other --from-literal=AWS_ACCESS_KEY_ID=" in str(result.hint)


def test_a_secret_with_other_keys_is_reported_with_their_names():
    cluster = HealthyCluster()
    cluster.put(SECRETS, secret("user", "password"))
    found = examine(cluster)
    assert "s3 has password, user, but no AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in found["storage.secret"].detail
    assert "hush" not in str(found)


def test_a_config_map_without_the_certificate_is_a_problem():
    cluster = HealthyCluster()
    cluster.put(CONFIG_MAPS, {"metadata": {"name": "ca"}, "data": {"ca.pem": ""}})
    assert examine(cluster, "storage.ca_config_map=ca")["storage.ca_config_map"].state == "problem"


def test_a_claim_for_one_node_is_a_warning_with_several_pods():
    cluster = HealthyCluster()
    claim = {"spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}}
    cluster.put(CLAIMS, {"metadata": {"name": "cache"}, **claim})
    assert examine(cluster, "cluster.cache_claim=cache")["cluster.cache_claim"].state == "warning"


def test_an_objection_of_the_server_is_a_problem():
    cluster = HealthyCluster()
    cluster.refusals["create", PODS] = ClusterError('pods "a" is forbidden: no PriorityClass with name p was found')
    found = examine(cluster, "cluster.priority_class=p")
    assert found["cluster.priority_class"].state == "problem"


def test_an_image_without_a_version_is_a_warning():
    assert examine(HealthyCluster(), "image=r/t:latest")["image"].state == "warning"


def test_a_missing_image_is_a_problem_and_room_is_still_checked():
    found = examine(HealthyCluster(), "image=null")
    assert found["job"].detail == "image: missing; required on a cluster"
    assert found["room"].state == "ok"


@pytest.mark.parametrize("url", ["http://localhost:8333", "http://127.0.0.1:1", "http://[::1]:1"])
def test_a_loopback_endpoint_is_a_problem(url):
    assert examine(HealthyCluster(), f"storage.endpoint_url={url}")["endpoint"].state == "problem"


def test_an_endpoint_of_only_this_machine_is_a_problem(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example")
    assert examine(HealthyCluster())["endpoint"].state == "problem"


def test_missing_credentials_are_a_warning():
    assert examine(HealthyCluster(), "storage.secret=null")["credentials"].state == "warning"
