"""The objects that helm renders from the chart, without a cluster."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpmbee_job.launch.kube.permissions import CLUSTER_PERMISSIONS, OPTIONAL_PERMISSIONS, PERMISSIONS, rules
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.spec import parse_spec
from tests.helm import CHART, SPEC_FOLDER, VALUES, Manifest, helm, job_specs, of_kind, only, pods, template

pytestmark = pytest.mark.timeout(1800)  # the first one may have to build helm

SPEC = {
    "image": "example/train:1",
    "model": "s3://models/m/",
    "data": {"train": "s3://data/train.jsonl"},
    "output": "s3://runs/",
    "storage": {"secret": "s3"},
}
KEYS = {"accessKeyId": "key", "secretAccessKey": "secret"}
each_example = pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)


def example(path: Path) -> list[Manifest]:
    return template(None, f"--values={path}")


def one_job(**job: Any) -> dict[str, Any]:
    return {"jobs": {"ccpm": {"spec": SPEC, **job}}}


def launcher(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the launcher's container of the only job."""
    (pod,) = [pod for name, pod in pods(manifests).items() if not re.search("doctor|test", name)]
    (container,) = pod["spec"]["containers"]
    return container


@each_example
def test_example_values_pass_helm_lint(path: Path) -> None:
    done = helm("lint", "--strict", str(CHART), f"--values={path}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_default_values_pass_helm_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@each_example
def test_every_pod_meets_the_restricted_pod_security_standard(path: Path) -> None:
    found = pods(example(path))
    assert found
    for name, pod in found.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} <= {
            "emptyDir",
            "configMap",
            "secret",
            "persistentVolumeClaim",
        }
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["limits"]["memory"], name


@each_example
def test_every_spec_can_be_rendered(path: Path) -> None:
    specs = job_specs(example(path))
    assert specs
    for name, text in specs.items():
        if not name.endswith("-test"):  # whose inputs are uploaded
            render(parse_spec(text, source=name), "0")


@each_example
def test_only_tests_are_hooks(path: Path) -> None:
    for manifest in example(path):
        annotations = manifest["metadata"].get("annotations", {})
        assert annotations.get("helm.sh/hook", "test") == "test"
        assert (manifest["kind"] == "Pod") == ("helm.sh/hook" in annotations)


def test_only_what_active_runs_need_is_kept_on_uninstall() -> None:
    values = {
        **one_job(),
        "secret": KEYS,
        "s3": {"enabled": True, "size": "1Gi"},
        "caBundle": "x",
        "trainServiceAccount": {"create": True},
    }
    kept = {
        (manifest["kind"], manifest["metadata"]["name"])
        for manifest in template(values)
        if manifest["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        ("Secret", "rel-s3-credentials"),
        ("ConfigMap", "rel-ca"),
        ("ServiceAccount", "rel-train"),
        ("PersistentVolumeClaim", "rel-s3"),
        ("NetworkPolicy", "rel-training"),
    }


def test_the_name_of_a_job_depends_on_its_content() -> None:
    def name(values: dict[str, Any]) -> str:
        return str(only(template(values), "Job")["metadata"]["name"])

    first = name(one_job())
    assert re.fullmatch("rel-ccpm-[0-9a-f]{10}", first)
    assert name(one_job()) == first
    other_spec = {"jobs": {"ccpm": {"spec": SPEC | {"train": {"epochs": 2}}}}}
    others = {name(other_spec), name(one_job() | {"image": {"tag": "2"}}), name(one_job(wait=False))}
    assert len(others | {first}) == 4


def test_a_job_waits_for_its_run_by_default() -> None:
    args = launcher(template(one_job()))["args"]
    assert args == ["submit", "/etc/cpmbee-job/spec/job.yaml", "--wait"]
    assert "--wait" not in launcher(template(one_job(wait=False)))["args"]


def test_each_scheduled_job_has_its_own_key() -> None:
    made = template(one_job(schedule="0 3 * * *", timeZone="Asia/Shanghai"))
    container = launcher(made)
    assert "--key=$(JOB_NAME)" in container["args"]
    (variable,) = [variable for variable in container["env"] if variable["name"] == "JOB_NAME"]
    path = variable["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.labels['batch.kubernetes.io/job-name']"
    spec = only(made, "CronJob")["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 3 * * *", "Asia/Shanghai", "Forbid")


def test_if_changed_uses_no_key() -> None:
    args = launcher(template(one_job(schedule="@daily", ifChanged=True)))["args"]
    assert "--if-changed" in args
    assert not any(arg.startswith("--key") for arg in args)


def test_launcher_variables_are_passed_unchanged() -> None:
    given = {"HTTPS_PROXY": "http://proxy:3128", "MOST": 16777216, "ON": True}
    env = launcher(template(one_job() | {"launcher": {"env": given}}))["env"]
    assert {one["name"]: one["value"] for one in env if one["name"] in given} == {
        "HTTPS_PROXY": "http://proxy:3128",
        "MOST": "16777216",
        "ON": "true",
    }


def test_permanent_errors_fail_the_job_at_once() -> None:
    policy = only(template(one_job()), "Job")["spec"]["podFailurePolicy"]["rules"]
    (rule,) = [rule for rule in policy if rule["action"] == "FailJob"]
    assert rule["onExitCodes"]["containerName"] == launcher(template(one_job()))["name"]
    assert {3, 5, 100, 103} <= set(rule["onExitCodes"]["values"])
    assert not {0, 1, 4, 101, 130} & set(rule["onExitCodes"]["values"])  # the store may come back


def test_all_specs_and_the_launcher_use_the_object_store_of_the_values() -> None:
    values = {
        "defaults": {key: SPEC[key] for key in ("image", "output")} | {"storage": {"region": "eu-west-1"}},
        "jobs": {"ccpm": {"spec": {key: SPEC[key] for key in ("model", "data")}}},
        "secret": KEYS,
        "caBundle": "-----BEGIN",
        "s3": {"enabled": True},
        "trainServiceAccount": {"create": True},
    }
    made = template(values)
    spec = parse_spec(job_specs(made)["rel-job-ccpm"], source="job.yaml")
    assert spec.name == "ccpm"
    assert spec.storage.endpoint_url == "http://rel-s3.team.svc:8333"
    assert spec.storage.region == "eu-west-1"
    assert (spec.storage.secret, spec.storage.ca_config_map) == ("rel-s3-credentials", "rel-ca")
    assert spec.storage.service_account == "rel-train"
    pod = next(pod for name, pod in pods(made).items() if name.startswith("rel-ccpm"))
    (container,) = pod["spec"]["containers"]
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"]["name"] == "rel-s3-credentials"
    assert env["CPMBEE_IN_CLUSTER"]["value"] == "1"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert env["AWS_CA_BUNDLE"]["value"] == f"{mounts['ca']}/ca.crt"
    assert {"name": "ca", "configMap": {"name": "rel-ca"}} in pod["spec"]["volumes"]


def test_fields_of_a_spec_override_the_defaults() -> None:
    defaults = {"data": {"strict": True}, "train": {"epochs": 9, "lr": 0.1}, "cluster": {"queue": "team-a"}}
    values = {"defaults": defaults, "jobs": {"ccpm": {"spec": SPEC | {"name": "own", "train": {"epochs": 1}}}}}
    values["jobs"]["ccpm"]["spec"]["data"] = {"train": "s3://d/", "strict": False}
    spec = parse_spec(job_specs(template(values))["rel-job-ccpm"], source="job.yaml")
    assert (spec.name, spec.train.epochs, spec.train.lr, spec.data.strict) == ("own", 1, 0.1, False)
    assert spec.cluster.queue == "team-a"


def test_a_spec_may_be_text() -> None:
    spec = SPEC | {"train": {"lr": 1e-4, "seed": 7}}
    text = yaml.safe_dump(spec).replace("0.0001", "1e-4")
    of_text, of_map = (job_specs(template({"jobs": {"ccpm": {"spec": given}}})) for given in (text, spec))
    assert "1e-4" in text
    assert of_text == of_map


def test_long_names_are_shortened_and_stay_distinct() -> None:
    names = [f"{'a-very-long-name-of-a-job-' * 2}"[:38] + letter for letter in "ab"]
    for extra, kind, longest in (({}, "Job", 63), ({"schedule": "@daily"}, "CronJob", 52)):
        values = {"jobs": {name: {"spec": SPEC, **extra} for name in names}}
        release = template(values, release="release-with-a-name-that-is-long-too")
        made = [manifest["metadata"]["name"] for manifest in of_kind(release, kind)]
        assert len(set(made)) == 2
        assert max(map(len, made)) <= longest


def test_the_launcher_has_exactly_the_permissions_of_its_commands() -> None:
    made = template(one_job() | {"rbac": {"clusterRole": True}})
    assert only(made, "Role")["rules"] == rules([*PERMISSIONS, *OPTIONAL_PERMISSIONS])
    assert only(made, "ClusterRole")["rules"] == rules(CLUSTER_PERMISSIONS)
    assert not of_kind(template(one_job()), "ClusterRole")
    account = next(iter(pods(made).values()))["spec"]["serviceAccountName"]
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        assert only(made, kind)["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}]


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://minio.example:9000", 9000), ("http://minio.example", 80), (None, 443)]
)
def test_policies_allow_the_object_store_and_for_the_launcher_the_api_server(endpoint: str | None, port: int) -> None:
    storage = {"secret": "s3"} | ({"endpoint_url": endpoint} if endpoint else {})
    made = template({"jobs": {"ccpm": {"spec": SPEC | {"storage": storage}}}})
    ports = {
        policy["metadata"]["name"]: {
            one["port"]
            for rule in policy["spec"]["egress"]
            for one in rule.get("ports", [])
            if one["protocol"] == "TCP"
        }
        for policy in of_kind(made, "NetworkPolicy")
    }
    assert ports == {"rel-training": {53, 443, port}, "rel-launcher": {53, 443, 6443, port}}


def test_training_pods_reach_each_other_on_all_ports_and_launchers_are_unreachable() -> None:
    made = template(one_job() | {"secret": KEYS, "s3": {"enabled": True}})
    training, launchers = (
        next(one["spec"] for one in of_kind(made, "NetworkPolicy") if one["metadata"]["name"] == f"rel-{name}")
        for name in ("training", "launcher")
    )
    pod = render(parse_spec(yaml.safe_dump(SPEC | {"name": "ccpm"}), source="job.yaml"), "0")
    labels = pod["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["labels"]
    assert labels.items() >= training["podSelector"]["matchLabels"].items() > set()
    assert {"from": [{"podSelector": training["podSelector"]}]} in training["ingress"]
    assert {"to": [{"podSelector": training["podSelector"]}]} in training["egress"]
    assert "ingress" not in launchers
    selected = {
        name
        for name, pod in pods(made).items()
        if launchers["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    }
    assert pods(made).keys() - selected == {"rel-s3"}
    for policy in (training, launchers):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert {
            port["protocol"] for rule in policy["egress"] for port in rule.get("ports", []) if port["port"] == 53
        } == {
            "UDP",
            "TCP",
        }


def test_the_policy_of_training_pods_equals_that_of_k8s_base() -> None:
    written = yaml.safe_load((CHART.parents[1] / "k8s" / "base" / "network-policy.yaml").read_text())
    made = {one["metadata"]["name"]: one["spec"] for one in of_kind(template(one_job()), "NetworkPolicy")}
    assert made["rel-training"] == written["spec"]


def test_helm_test_trains_if_the_defaults_have_image_and_output() -> None:
    unknown = {key: value for key, value in SPEC.items() if key != "image"}
    assert "rel-test-training" not in pods(template({"jobs": {"ccpm": {"spec": unknown}}}))
    defaults = {"image": "example/train:1", "output": "s3://runs/", "workers": {"gpus": 8, "memory": "512Gi"}}
    made = template({"defaults": defaults})
    pod = pods(made)["rel-test-training"]["spec"]
    assert [container["image"] for container in pod["initContainers"]] == ["example/train:1"]
    spec = parse_spec(job_specs(made)["rel-test"], source="job.yaml")
    assert (spec.workers.gpus, spec.workers.memory, spec.output) == (0, "2Gi", "s3://runs/")


def test_helm_test_trains_with_image_and_output_of_the_first_job_otherwise() -> None:
    first = SPEC | {"image": "example/train:2", "cluster": {"queue": "small"}, "train": {"epochs": 9}}
    made = template({"jobs": {"a": {"spec": first}, "b": {"spec": SPEC}}})
    spec = parse_spec(job_specs(made)["rel-test"], source="job.yaml")
    assert (spec.image, spec.output, spec.storage.secret) == ("example/train:2", "s3://runs/", "s3")
    assert (spec.cluster.queue, spec.train.epochs, spec.data.train) == ("small", 1, f"{SPEC_FOLDER}/train.jsonl")
    env = pods(made)["rel-test-training"]["spec"]["containers"][0]["env"]
    assert "AWS_SECRET_ACCESS_KEY" in [variable["name"] for variable in env]


def test_the_notes_name_existing_objects(tmp_path: Path) -> None:
    """helm prints them only after an installation; here they are rendered into an object."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates" / "notes.yaml").write_text(
        "{kind: Notes, metadata: {name: notes}, text: {{ tpl (.Files.Get `NOTES.txt`) . | toJson }}}"
    )
    values = {
        "jobs": {name: {"spec": SPEC, "schedule": "@daily"} for name in ("ccpm", "a-job-with-a-name-that-is-long")}
    }
    made = template(values, release="release-with-a-name-that-is-long-too", chart=chart)
    notes = only(made, "Notes")["text"]
    by_hand = re.findall(r"kubectl -n team create job (\S+) --from=cronjob/(\S+)", notes)
    assert {cronjob for _, cronjob in by_hand} == {one["metadata"]["name"] for one in of_kind(made, "CronJob")}
    assert len({job for job, _ in by_hand}) == 2
    assert all(re.fullmatch(r"[a-z0-9-]{1,63}", job) for job, _ in by_hand)
    assert "run a tiny training" in notes
    (selector,) = re.findall(r"logs -l (\S+)", notes)
    wanted = dict(term.split("=") for term in selector.split(","))
    for pod in pods(made).values():
        assert wanted.items() <= pod["metadata"]["labels"].items()


def test_the_development_s3_server_starts_with_the_buckets_of_the_runs() -> None:
    specs = {"a": {"spec": SPEC}, "b": {"spec": SPEC | {"output": "s3://others"}}, "c": {"spec": SPEC}}
    made = template({"jobs": specs, "secret": KEYS, "s3": {"enabled": True}})
    assert "-bucket=runs,others" in pods(made)["rel-s3"]["spec"]["containers"][0]["command"]
