"""The API server's objections to a job name the keys of the spec. The errors are those of a real server."""

import pytest

from cpmbee_job.errors import (
    ClusterError,
    ConflictError,
    NotFoundError,
    PreflightError,
    RejectedError,
    SpecError,
    UnreachableError,
)
from cpmbee_job.launch.checks.server_check import ServerAnswer, check_on_server, rendered
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, QUOTAS
from cpmbee_job.spec import parse_spec
from tests.fake_cluster import FakeCluster

JOB = "{name: a, image: r/t:1, model: s3://m/, data: {train: s3://d/}, output: s3://o/, workers: {count: 2}}"
WEBHOOK = 'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the request: '
NOT_MINE = 'pods is forbidden: User "me" cannot create resource "pods" in API group "" in the namespace "default"'


def parse(*overrides):
    return parse_spec(JOB, source="job.yaml", overrides=overrides)


def check(cluster, *overrides):
    spec = parse(*overrides)
    return check_on_server(cluster, spec, rendered(spec, cluster.namespace))


def refusing(kind, error):
    cluster = FakeCluster()
    cluster.refusals["create", kind] = error
    return cluster


def test_nothing_is_created():
    cluster = FakeCluster()
    answer = check(cluster)
    assert not answer.objections + answer.missing + answer.not_permitted
    assert cluster.objects == {}


def test_an_invalid_field_is_reported_with_its_key():
    words = 'Unsupported value: "Foo": supported values: "Equal", "Exists"'
    error = RejectedError("", [("spec.tolerations[0].operator", words)])
    answer = check(refusing(PODS, error), "cluster.tolerations=[{key: a, operator: Foo}]")
    assert answer.objections == [("cluster.tolerations.0.operator", words)]


def test_an_unknown_field_is_reported_once_for_the_job_and_its_pod():
    cluster = FakeCluster()
    path = "spec.pytorchReplicaSpecs.Worker.template.spec.foo"
    cluster.refusals["create", PYTORCHJOBS] = RejectedError(f'strict decoding error: unknown field "{path}"')
    cluster.refusals["create", PODS] = RejectedError('strict decoding error: unknown field "spec.foo"')
    answer = check(cluster, "cluster.pod_overlay={spec: {foo: 1}}")
    assert answer.objections == [("cluster.pod_overlay.spec.foo", "unknown field")]


def test_a_refusal_by_the_webhook_is_parsed():
    path = "spec.pytorchReplicaSpecs[Worker].template.spec.containers[0].image"
    answer = check(refusing(PYTORCHJOBS, ClusterError(f"{WEBHOOK}{path}: Required value: must be required")))
    assert answer.objections == [("image", "Required value: must be required")]


def test_what_the_crd_did_not_check_is_not_reported():
    path = "spec.runPolicy.ttlSecondsAfterFinished"
    causes = [(path, f'Invalid value: "string": {path} in body must be of type integer'), ("<nil>", "not checked")]
    answer = check(refusing(PYTORCHJOBS, RejectedError("", causes)))
    assert answer.objections == [("cluster.ttl", 'Invalid value: "string": must be of type integer')]


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ('violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)', "cluster.pod_overlay"),
        ("maximum memory usage per Container is 512Mi, but limit is 16Gi", "workers.memory"),
        ("image policy says no", ""),
    ],
)
def test_a_refusal_by_admission_is_reported_with_the_likely_key(message, key):
    answer = check(refusing(PODS, ClusterError(f'pods "a-worker-0" is forbidden: {message}')))
    assert answer.objections == [(key, message)]


class Admission(FakeCluster):
    """Requires a missing service account, and refuses the pod without one too."""

    def create(self, kind, manifest, **options):
        if kind == PODS and "serviceAccountName" in manifest["spec"]:
            raise ClusterError('pods "a" is forbidden: error looking up service account default/me: not found')
        if kind == PODS:
            raise ClusterError('pods "a" is forbidden: violates PodSecurity "restricted:latest": privileged')
        return super().create(kind, manifest, **options)


def test_a_missing_object_hides_no_objection():
    answer = check(Admission(), "storage.service_account=me")
    assert answer.missing == [("storage.service_account", "error looking up service account default/me: not found")]
    assert [key for key, _ in answer.objections] == ["cluster.pod_overlay"]


def test_a_denied_job_is_missing_a_permission():
    answer = check(refusing(PYTORCHJOBS, ClusterError(NOT_MINE.replace("pods", "pytorchjobs"))))
    assert not answer.objections
    assert len(answer.missing) == 1


def test_a_denied_pod_is_not_checked():
    answer = check(refusing(PODS, ClusterError(NOT_MINE)))
    assert not answer.objections + answer.missing
    assert NOT_MINE in answer.not_permitted[0]


def test_a_missing_namespace_is_reported_once():
    cluster = FakeCluster()
    for kind in (PYTORCHJOBS, PODS):
        cluster.refusals["create", kind] = NotFoundError('namespaces "a" not found')
    assert check(cluster).missing == [("", 'namespaces "a" not found')]


def test_an_existing_job_is_accepted():
    answer = check(refusing(PYTORCHJOBS, ConflictError("already exists")))
    assert not answer.objections + answer.missing


def test_quotas_are_compared_with_all_pods():
    cluster = refusing(PODS, ClusterError('pods "a" is forbidden: exceeded quota: q, requested: pods=1'))
    status = {"hard": {"pods": "2"}, "used": {"pods": "2"}}
    cluster.put(QUOTAS, {"metadata": {"name": "q"}, "spec": {}, "status": status})
    assert check(cluster).missing == [("", "quota q: pods: the job requests 2, 2 of 2 are used")]


def test_warnings_of_the_server_are_kept_once():
    cluster = FakeCluster()
    cluster.warnings = ["would violate PodSecurity"]
    assert check(cluster).warnings == ["would violate PodSecurity"]


@pytest.mark.parametrize("kind", [PYTORCHJOBS, PODS])
@pytest.mark.parametrize("error", [UnreachableError("no answer"), ClusterError("it does not accept the credentials")])
def test_an_api_server_that_cannot_be_asked_is_an_error(kind, error):
    with pytest.raises(ClusterError, match=error.message):
        check(refusing(kind, error))


def test_local_inputs_are_rendered_as_uploads(tmp_path):
    spec = parse(f"model={tmp_path}", f"data.train={tmp_path}/t.jsonl")
    assert rendered(spec, "default")["kind"] == "PyTorchJob"


def test_a_local_output_is_refused():
    with pytest.raises(SpecError, match="output: /runs is a local folder"):
        rendered(parse("output=/runs", "model=/m"), "default")


def test_objections_make_the_spec_invalid_and_missing_objects_are_named_too():
    answer = ServerAnswer(objections=[("workers.cpu", "too much")], missing=[("", "no namespace")])
    with pytest.raises(RejectedError, match=r"^job.yaml: workers.cpu: too much\nno namespace\n"):
        answer.require_accepted("job.yaml", "https://there")


def test_a_missing_object_fails_the_preflight():
    with pytest.raises(PreflightError, match=r"^storage.service_account: not found\n"):
        ServerAnswer(missing=[("storage.service_account", "not found")]).require_accepted("job.yaml", "https://there")
