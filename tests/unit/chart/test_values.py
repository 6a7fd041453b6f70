"""What values the chart takes, and what it says of others."""

import re
from typing import Any

import pytest
import yaml

import cpmbee_job
from tests.helm import CHART, helm, template

pytestmark = pytest.mark.timeout(1800)  # the first one may have to build helm

SPEC = {"model": "s3://m/", "data": {"train": "s3://d/"}, "output": "s3://o/", "image": "example/train:1"}


def jobs(**job: Any) -> dict[str, Any]:
    return {"jobs": {"ccpm": {"spec": SPEC, **job}}}


@pytest.mark.parametrize(
    ("values", "words"),
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
        (jobs(ifChanged=True), "jobs.ccpm: ifChanged needs a schedule"),
        (jobs(suspend=True), "jobs.ccpm: suspend needs a schedule"),
        (jobs(timeZone="Asia/Shanghai"), "jobs.ccpm: timeZone needs a schedule"),
        (jobs(spec="name: [a"), "jobs.ccpm.spec: not valid YAML"),
        (jobs(spec=SPEC | {"cluster": {"namespace": "else"}}), "cluster.namespace is else, and the release is in team"),
        ({"secret": {"accessKeyId": "a"}}, "give both"),
        ({"s3": {"enabled": True}}, "secret.accessKeyId"),
    ],
)
def test_a_mistake_is_named_before_anything_is_installed(values: dict[str, Any], words: str) -> None:
    done = helm("template", "rel", str(CHART), "--namespace=team", values=values)
    assert done.returncode != 0
    assert words in done.stderr


def test_the_readme_s_example_is_one() -> None:
    block = re.search(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    kinds = {manifest["kind"] for manifest in template(yaml.safe_load(block[1]))}
    assert "CronJob" in kinds


def test_the_chart_s_application_is_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == cpmbee_job.__version__
