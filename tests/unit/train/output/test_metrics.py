"""Metric names follow conventions, and the chart's dashboard and alerts query only metrics that exist."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from cpmbee_job.process import contract
from cpmbee_job.train.output.metrics import ENTRYPOINT, WORKERS, served
from tests.paths import CHART

FILES = CHART / "files"
SERVED = {
    family.name + ("_total" if family.type == "counter" else ""): family
    for registry in (WORKERS, ENTRYPOINT)
    for family in registry.collect()
}
LABELS = {"run", "gpu", "reason"}
LABELS_OF_A_SCRAPE = {"namespace", "pod"}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def dashboard() -> dict[str, Any]:
    return json.loads((FILES / "dashboard.json").read_text())


def queries() -> Iterator[str]:
    """Yield all PromQL of alerts and dashboard, with Grafana's variables replaced."""
    for rule in alerts():
        yield rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1]


def queried(query: str) -> tuple[set[str], set[str]]:
    """Return the names of the metrics in a query, and those of the labels."""
    names, labels = set(), set()

    def visit(part: promql.Expr) -> None:
        if isinstance(part, promql.VectorSelector):
            names.add(part.name)
            labels.update(matcher.name for matcher in part.matchers.matchers)
        if isinstance(part, promql.AggregateExpr):
            labels.update(part.modifier.labels)

    promql.walk(promql.parse(query), visit)
    return names, labels


@pytest.mark.parametrize("name", SERVED)
def test_a_name_has_the_prefix_base_units_and_the_suffix_of_counters(name: str) -> None:
    assert re.fullmatch(r"cpmbee_[a-z0-9]+(_[a-z0-9]+)*", name)
    assert name.endswith("_total") == (SERVED[name].type == "counter")
    words = name.removesuffix("_total").split("_")
    assert not {"ms", "milliseconds", "minutes", "kb", "mb", "gb", "percent", "age"} & set(words)
    for unit, before in (
        ("seconds", {"timestamp", "duration"}),
        ("bytes", {"memory", "sent", "received"}),
    ):
        if before & set(words):
            assert words[-1] == unit
    assert SERVED[name].documentation.endswith(".")


@pytest.mark.parametrize("query", list(queries()))
def test_dashboard_and_alerts_query_metrics_that_exist(query: str) -> None:
    names, labels = queried(query)
    assert names
    assert names <= SERVED.keys()
    assert labels <= LABELS | LABELS_OF_A_SCRAPE


def test_queried_finds_all_names() -> None:
    assert queried("sum by (pod) (rate(a_total{b='c'}[5m])) / max_over_time(d[1h:1m]) or (e > 1)") == (
        {"a_total", "d", "e"},
        {"pod", "b"},
    )
    with pytest.raises(ValueError, match="unclosed"):
        promql.parse("sum(rate(a[5m])")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for query in queries() for name in queried(query)[0]}
    assert shown == SERVED.keys()


def test_alerts_have_a_severity_and_a_summary() -> None:
    assert [rule["alert"] for rule in alerts()] == ["CpmbeeNoProgress", "CpmbeeCheckpointTooOld", "CpmbeeRestartLoop"]
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= queried(rule["expr"])[1]  # aggregation drops other labels


def test_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_without_a_port_no_metrics_are_served(monkeypatch, capsys, tmp_path: Path) -> None:
    for port in (None, ""):
        monkeypatch.delenv(contract.METRICS_PORT_ENV, raising=False)
        if port is not None:
            monkeypatch.setenv(contract.METRICS_PORT_ENV, port)
        with served("a/r1", tmp_path) as environment:
            assert environment == {}
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_cannot_be_used_is_reported(monkeypatch, capsys, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        for number, port in enumerate((str(taken.getsockname()[1]), "no number", "99999")):
            monkeypatch.setenv(contract.METRICS_PORT_ENV, port)
            folder = tmp_path / str(number)
            folder.mkdir()
            with served("a/r1", folder) as environment:
                assert environment == {}
            assert f"cannot serve metrics on port {port} (CPMBEE_METRICS_PORT): " in capsys.readouterr().err
