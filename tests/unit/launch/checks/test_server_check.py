"""What the API server says to a job is told with the spec's own keys. The errors are those of a real server."""

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
from cpmbee_job.launch.checks.server_check import Verdict, check_on_server, rendered
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
    verdict = check(cluster)
    assert not verdict.objections + verdict.missing + verdict.not_permitted
    assert cluster.objects == {}


def test_an_invalid_field_is_told_with_its_key():
    words = 'Unsupported value: "Foo": supported values: "Equal", "Exists"'
    error = RejectedError("", [("spec.tolerations[0].operator", words)])
    verdict = check(refusing(PODS, error), "cluster.tolerations=[{key: a, operator: Foo}]")
    assert verdict.objections == [("cluster.tolerations.0.operator", words)]


def test_unknown_fields_are_told_once_for_the_job_and_its_pod():
    cluster = FakeCluster()
    path = "spec.pytorchReplicaSpecs.Worker.template.spec.foo"
    cluster.refusals["create", PYTORCHJOBS] = RejectedError(f'strict decoding error: unknown field "{path}"')
    cluster.refusals["create", PODS] = RejectedError('strict decoding error: unknown field "spec.foo"')
    verdict = check(cluster, "cluster.pod_overlay={spec: {foo: 1}}")
    assert verdict.objections == [("cluster.pod_overlay.spec.foo", "unknown field")]


def test_the_webhook_is_understood():
    path = "spec.pytorchReplicaSpecs[Worker].template.spec.containers[0].image"
    verdict = check(refusing(PYTORCHJOBS, ClusterError(f"{WEBHOOK}{path}: Required value: must be required")))
    assert verdict.objections == [("image", "Required value: must be required")]


def test_what_the_crd_could_not_check_any_more_is_no_news():
    path = "spec.runPolicy.ttlSecondsAfterFinished"
    causes = [(path, f'Invalid value: "string": {path} in body must be of type integer'), ("<nil>", "not checked")]
    verdict = check(refusing(PYTORCHJOBS, RejectedError("", causes)))
    assert verdict.objections == [("cluster.ttl", 'Invalid value: "string": must be of type integer')]


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ('violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)', "cluster.pod_overlay"),
        ("maximum memory usage per Container is 512Mi, but limit is 16Gi", "workers.memory"),
        ("image policy says no", ""),
    ],
)
def test_an_admission_names_no_place_but_the_likely_key_is_told(message, key):
    verdict = check(refusing(PODS, ClusterError(f'pods "a-worker-0" is forbidden: {message}')))
    assert verdict.objections == [(key, message)]


class Admission(FakeCluster):
    """Misses a service account, and would say no to the pod without one too."""

    def create(self, kind, manifest, **options):
        if kind == PODS and "serviceAccountName" in manifest["spec"]:
            raise ClusterError('pods "a" is forbidden: error looking up service account default/me: not found')
        if kind == PODS:
            raise ClusterError('pods "a" is forbidden: violates PodSecurity "restricted:latest": privileged')
        return super().create(kind, manifest, **options)


def test_what_is_missing_hides_no_objection():
    verdict = check(Admission(), "storage.service_account=me")
    assert verdict.missing == [("storage.service_account", "error looking up service account default/me: not found")]
    assert [key for key, _ in verdict.objections] == ["cluster.pod_overlay"]


def test_a_job_that_nobody_may_create_is_missing_a_right():
    verdict = check(refusing(PYTORCHJOBS, ClusterError(NOT_MINE.replace("pods", "pytorchjobs"))))
    assert not verdict.objections
    assert len(verdict.missing) == 1


def test_a_pod_that_may_not_be_asked_about_is_said():
    verdict = check(refusing(PODS, ClusterError(NOT_MINE)))
    assert not verdict.objections + verdict.missing
    assert NOT_MINE in verdict.not_permitted[0]


def test_a_missing_namespace_is_told_once():
    cluster = FakeCluster()
    for kind in (PYTORCHJOBS, PODS):
        cluster.refusals["create", kind] = NotFoundError('namespaces "a" not found')
    assert check(cluster).missing == [("", 'namespaces "a" not found')]


def test_a_job_that_is_there_already_has_been_accepted():
    verdict = check(refusing(PYTORCHJOBS, ConflictError("already exists")))
    assert not verdict.objections + verdict.missing


def test_quotas_are_compared_with_all_pods():
    cluster = refusing(PODS, ClusterError('pods "a" is forbidden: exceeded quota: q, requested: pods=1'))
    status = {"hard": {"pods": "2"}, "used": {"pods": "2"}}
    cluster.put(QUOTAS, {"metadata": {"name": "q"}, "spec": {}, "status": status})
    assert check(cluster).missing == [("", "quota q: pods: the job asks for 2, 2 of 2 are used")]


def test_the_servers_warnings_are_kept_once():
    cluster = FakeCluster()
    cluster.warnings = ["would violate PodSecurity"]
    assert check(cluster).warnings == ["would violate PodSecurity"]


@pytest.mark.parametrize("kind", [PYTORCHJOBS, PODS])
@pytest.mark.parametrize("error", [UnreachableError("no answer"), ClusterError("it does not accept the credentials")])
def test_an_api_that_can_not_be_asked_says_nothing_about_the_job(kind, error):
    with pytest.raises(ClusterError, match=error.message):
        check(refusing(kind, error))


def test_local_inputs_are_asked_about_as_uploads(tmp_path):
    spec = parse(f"model={tmp_path}", f"data.train={tmp_path}/t.jsonl")
    assert rendered(spec, "default")["kind"] == "PyTorchJob"


def test_an_output_of_this_machine_is_refused():
    with pytest.raises(SpecError, match="output: /runs is a folder of this machine"):
        rendered(parse("output=/runs", "model=/m"), "default")


def test_objections_are_an_invalid_spec_and_name_the_missing_too():
    verdict = Verdict(objections=[("workers.cpu", "too much")], missing=[("", "no namespace")])
    with pytest.raises(RejectedError, match=r"^job.yaml: workers.cpu: too much\nno namespace\n"):
        verdict.require_accepted("job.yaml", "https://there")


def test_what_is_missing_fails_the_preflight():
    with pytest.raises(PreflightError, match=r"^storage.service_account: not found\n"):
        Verdict(missing=[("storage.service_account", "not found")]).require_accepted("job.yaml", "https://there")
