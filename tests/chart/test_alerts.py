"""The alert rules of the chart, evaluated by promtool."""

from pathlib import Path

import yaml

from tests.helm import CHART
from tests.promtool import promtool

RULES = CHART / "files" / "alerts.yaml"
TESTS = Path(__file__).parent / "alerts.test.yaml"


def test_alerts_fire_only_in_the_expected_cases() -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_in_some_case() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    checks = [check for test in yaml.safe_load(TESTS.read_text())["tests"] for check in test.get("alert_rule_test", ())]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == {rule["alert"] for rule in group["rules"]}


def test_a_failing_case_is_reported(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(RULES.read_text().replace("> 1800", "> 1860"))
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(TESTS.read_text()) | {"rule_files": ["alerts.yaml"]}))
    done = promtool("test", "rules", path)
    assert done.returncode == 1
    assert "CpmbeeNoProgress" in done.stdout + done.stderr
