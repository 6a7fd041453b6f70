"""Valid values of the chart, and errors for invalid ones."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import cpmbee_job
from tests.helm import CHART, helm, template

pytestmark = pytest.mark.timeout(1800)  # the first one may have to build helm

SPEC = {"model": "s3://m/", "data": {"train": "s3://d/"}, "output": "s3://o/", "image": "example/train:1"}


BASE = {
    "jobs": {"ccpm": {"spec": SPEC}},
    "secret": {"accessKeyId": "key", "secretAccessKey": "secret"},
    "s3": {"enabled": True, "size": "1Gi"},
    **{one: {"enabled": True} for one in ("podMonitor", "alerts", "dashboards")},
    "trainServiceAccount": {"create": True},
}
"""Values in which every other value has an effect."""
OTHERS: dict[str, Any] = {
    "image": {"repository": "example/other", "tag": "other-tag", "pullPolicy": "Never"},
    "imagePullSecrets": [{"name": "other-registry"}],
    "defaults": {"cluster": {"queue": "other-queue"}},
    "jobs": {"other": {"spec": SPEC}},
    "launcher": {
        "resources": {"limits": {"memory": "777Mi"}},
        "env": {"OTHER_NAME": "other-value"},
        "backoffLimit": 77,
        "nodeSelector": {"other/label": "other"},
        "tolerations": [{"key": "other-taint"}],
    },
    "serviceAccount": {"annotations": {"other/role": "of-launcher"}},
    "trainServiceAccount": {"create": False, "annotations": {"other/role": "of-training"}},
    "rbac": {"clusterRole": True},
    "secret": {"accessKeyId": "other-key", "secretAccessKey": "other-secret"},
    "caBundle": "other certificates",
    "networkPolicy": {
        "enabled": False,
        "metricsFrom": [{"podSelector": {"matchLabels": {"other": "prometheus"}}}],
        "apiServerPorts": [16443],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    },
    "podMonitor": {"enabled": False, "labels": {"other": "monitor"}},
    "alerts": {"enabled": False, "labels": {"other": "rules"}},
    "dashboards": {"enabled": False, "label": "other_label", "labelValue": "other value"},
    "s3": {
        "enabled": False,
        "image": "example/other-s3",
        "program": "other-program",
        "size": "777Gi",
        "storageClass": "other-class",
        "resources": {"limits": {"memory": "777Mi"}},
    },
}


def documented(section: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the paths of all values that the schema describes."""
    for name, one in section["properties"].items():
        if "description" in one:
            yield (*path, name)
        else:
            yield from documented(one, (*path, name))


DOCUMENTED = sorted({*documented(json.loads((CHART / "values.schema.json").read_text()))} - {("global",)})


def jobs(**job: Any) -> dict[str, Any]:
    return {"jobs": {"ccpm": {"spec": SPEC, **job}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imag": {}}, "imag"),
        ({"image": {"tag": 1}}, "/image/tag"),
        (jobs(shedule="@daily"), "shedule"),
        ({"jobs": {"ccpm": {}}}, "spec"),
        ({"jobs": {"CCPM": {"spec": SPEC}}}, "CCPM"),
        (jobs(spec=SPEC | {"batchsize": 5}), "batchsize"),
        (jobs(spec=SPEC | {"train": {"epochs": 0}}), "epochs"),
        (jobs(spec=SPEC | {"train": {"lr_decay_style": "nom"}}), "noam"),
        (jobs(spec=SPEC | {"train": {"seed": 2**53 + 1}}), "seed"),
        ({"defaults": {"workers": {"gpu": 8}}}, "gpu"),
        (jobs(ifChanged=True), "jobs.ccpm: ifChanged requires schedule"),
        (jobs(suspend=True), "jobs.ccpm: suspend requires schedule"),
        (jobs(timeZone="Asia/Shanghai"), "jobs.ccpm: timeZone requires schedule"),
        (jobs(spec="name: [a"), "jobs.ccpm.spec: not valid YAML"),
        (jobs(spec=SPEC | {"cluster": {"namespace": "else"}}), "cluster.namespace is else, but the release is in team"),
        ({"secret": {"accessKeyId": "a"}}, "requires both"),
        ({"s3": {"enabled": True}}, "secret.accessKeyId"),
    ],
)
def test_invalid_values_are_reported_before_the_installation(values: dict[str, Any], message: str) -> None:
    done = helm("template", "rel", str(CHART), "--namespace=team", values=values)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("path", DOCUMENTED, ids=".".join)
def test_every_value_changes_the_installed_objects(path: tuple[str, ...]) -> None:
    values: Any = copy.deepcopy(BASE)
    section, other = values, OTHERS
    for name in path[:-1]:
        section, other = section.setdefault(name, {}), other[name]
    section[path[-1]] = other[path[-1]]
    before, after = (json.dumps(template(one)) for one in (BASE, values))
    assert after != before
    leaves = re.findall(r"[^][{}:,\"\s]+", "" if path == ("jobs",) else json.dumps(other[path[-1]]))
    assert [leaf for leaf in leaves if leaf not in ("true", "false") and leaf not in after] == []


def test_the_example_of_the_readme_is_valid() -> None:
    block = re.search(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    kinds = {manifest["kind"] for manifest in template(yaml.safe_load(block[1]))}
    assert "CronJob" in kinds


def test_the_app_version_is_the_version_of_the_package() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == cpmbee_job.__version__
