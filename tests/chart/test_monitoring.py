"""The chart's objects for Prometheus and Grafana."""

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
    """Return the ingress rules of the policy of training pods."""
    policies = of_kind(template({"networkPolicy": values}), "NetworkPolicy")
    (rules,) = (policy["spec"]["ingress"] for policy in policies if policy["metadata"]["name"] == "rel-training")
    return rules


def labels(manifest: Manifest) -> dict[str, str]:
    """Return the labels besides those of all objects of the chart."""
    common = only(template({}), "Role")["metadata"]["labels"]
    assert manifest["metadata"]["labels"].items() >= common.items()
    return dict(manifest["metadata"]["labels"].items() - common.items())


def test_monitoring_is_off_by_default() -> None:
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


def test_the_pod_monitor_selects_training_pods_and_their_port() -> None:
    spec = only(template(MONITORING), "PodMonitor")["spec"]
    pod = render(SPEC, "0")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    assert pod["metadata"]["labels"].items() >= spec["selector"]["matchLabels"].items() > set()
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert spec["podMetricsEndpoints"] == [{"port": port["name"]}]
    assert spec.keys() == {"selector", "podMetricsEndpoints"}


def test_the_pod_monitor_equals_that_of_the_docs() -> None:
    block = re.search(r"```yaml\n(apiVersion.*?)```", (ROOT / "docs" / "how-to" / "monitor.md").read_text(), re.DOTALL)
    assert block
    documents = (yaml.safe_load(block[1]), only(template(MONITORING), "PodMonitor"))
    written, made = ({key: part for key, part in one.items() if key != "metadata"} for one in documents)
    assert written == made


def test_the_prometheus_rule_has_the_unchanged_alerts_with_their_braces() -> None:
    written = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert only(template(MONITORING), "PrometheusRule")["spec"] == written


def test_the_config_map_has_the_unchanged_dashboard() -> None:
    data = only(template(MONITORING), "ConfigMap")["data"]
    assert data == {"cpmbee-job.json": (CHART / "files" / "dashboard.json").read_text()}


def test_labels_can_be_set_for_prometheus_and_grafana() -> None:
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


def test_the_policy_admits_another_prometheus_or_none() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "ops"}}}
    each_other, metrics = ingress({"metricsFrom": [peer]})
    assert metrics == {"from": [peer], "ports": [{"port": "metrics", "protocol": "TCP"}]}
    assert ingress({"metricsFrom": []}) == [each_other]
