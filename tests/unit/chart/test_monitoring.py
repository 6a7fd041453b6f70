"""How Prometheus and Grafana come to the metrics, the alerts and the dashboard by the chart."""

import re
from typing import Any

import pytest
import yaml

from cpmbee_job.launch.manifest.render import render
from cpmbee_job.spec import load_spec
from tests.helm import CHART, Manifest, of_kind, only, template
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(1800)  # the first one may have to build helm

SPEC = load_spec(ROOT / "k8s" / "example" / "job.yaml")
MONITORING = {"podMonitor": {"enabled": True}, "alerts": {"enabled": True}, "dashboards": {"enabled": True}}


def ingress(values: dict[str, Any]) -> list[Any]:
    """What the training pods' policy lets in."""
    policies = of_kind(template({"networkPolicy": values}), "NetworkPolicy")
    (rules,) = (policy["spec"]["ingress"] for policy in policies if policy["metadata"]["name"] == "rel-training")
    return rules


def labels(manifest: Manifest) -> dict[str, str]:
    """Beside those that all objects of the chart have."""
    common = only(template({}), "Role")["metadata"]["labels"]
    assert manifest["metadata"]["labels"].items() >= common.items()
    return dict(manifest["metadata"]["labels"].items() - common.items())


def test_there_is_nothing_of_it_unless_it_is_asked_for() -> None:
    off, on = (
        {(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in template(values)}
        for values in ({}, MONITORING)
    )
    assert on - off == {
        ("monitoring.coreos.com/v1", "PodMonitor", "rel-training"),
        ("monitoring.coreos.com/v1", "PrometheusRule", "rel-training"),
        ("v1", "ConfigMap", "rel-dashboard"),
    }
    for name, value in MONITORING.items():
        assert len(template({name: value})) == len(off) + 1


def test_the_pod_monitor_finds_training_pods_and_their_port() -> None:
    spec = only(template(MONITORING), "PodMonitor")["spec"]
    pod = render(SPEC, "0")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    assert pod["metadata"]["labels"].items() >= spec["selector"]["matchLabels"].items() > set()
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert spec["podMetricsEndpoints"] == [{"port": port["name"]}]
    assert spec.keys() == {"selector", "podMetricsEndpoints"}


def test_the_pod_monitor_is_that_of_the_docs() -> None:
    block = re.search(r"```yaml\n(apiVersion.*?)```", (ROOT / "docs" / "how-to" / "monitor.md").read_text(), re.DOTALL)
    assert block
    documents = (yaml.safe_load(block[1]), only(template(MONITORING), "PodMonitor"))
    written, made = ({key: part for key, part in one.items() if key != "metadata"} for one in documents)
    assert written == made


def test_alerts_arrive_as_they_are_in_the_file_braces_and_all() -> None:
    written = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert only(template(MONITORING), "PrometheusRule")["spec"] == written


def test_the_dashboard_arrives_letter_by_letter() -> None:
    data = only(template(MONITORING), "ConfigMap")["data"]
    assert data == {"cpmbee-job.json": (CHART / "files" / "dashboard.json").read_text()}


def test_labels_are_those_that_prometheus_and_grafana_select_by() -> None:
    made = template(MONITORING)
    assert [labels(only(made, kind)) for kind in ("PodMonitor", "PrometheusRule")] == [{}, {}]
    assert labels(only(made, "ConfigMap")) == {"grafana_dashboard": "1"}
    made = template(
        {
            "podMonitor": {"enabled": True, "labels": {"release": "prom"}},
            "alerts": {"enabled": True, "labels": {"role": "alert-rules"}},
            "dashboards": {"enabled": True, "label": "dashboards", "labelValue": "yes"},
        }
    )
    assert labels(only(made, "PodMonitor")) == {"release": "prom"}
    assert labels(only(made, "PrometheusRule")) == {"role": "alert-rules"}
    assert labels(only(made, "ConfigMap")) == {"dashboards": "yes"}


def test_another_prometheus_is_let_in_by_name_or_none() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "ops"}}}
    each_other, metrics = ingress({"metricsFrom": [peer]})
    assert metrics == {"from": [peer], "ports": [{"port": "metrics", "protocol": "TCP"}]}
    assert ingress({"metricsFrom": []}) == [each_other]
