"""The chart on a real cluster."""

import re
from pathlib import Path

import pytest
import yaml

from cpmbee_job.run import keys
from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import eventually, get, kubectl
from tests.cluster.releases import LABEL, NAME, Release
from tests.cluster.s3 import CREDENTIALS
from tests.helm import CHART, VALUES, template

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture
def release(laptop: Laptop) -> Release:
    """A release that is not installed yet, with one short job of one worker."""
    release = Release(laptop)
    release.upload_inputs()
    release.change_rows(seed=3)
    laptop.spec["train"]["epochs"] = 1
    laptop.spec["workers"]["count"] = 1
    return release


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_an_api_server_accepts_the_example_values(path: Path, namespace: str) -> None:
    for manifest in template(None, f"--values={path}"):
        if "namespace" not in manifest["metadata"] and "Cluster" not in manifest["kind"]:
            manifest["metadata"]["namespace"] = namespace
        really = manifest["kind"] == "ServiceAccount"  # which pods are refused without
        kubectl("create", f"--dry-run={'none' if really else 'server'}", "--validate=strict", "-f", "-", stdin=manifest)


def test_if_changed_trains_only_after_a_change_of_the_data(release: Release) -> None:
    release.install(release.values(schedule="* * * * *", ifChanged=True))
    eventually(lambda: release.ended("Complete"), "a firing has ended", seconds=600)
    (first,) = release.runs()
    assert release.result(first)["state"] == "succeeded"
    run = f"{release.laptop.spec['name']}/{first}"
    assert release.store.info(f"{run}/{keys.BEST}") is not None

    def skipped() -> list[str]:
        return [job for job in release.ended("Complete") if "already succeeded" in release.logs(job)]

    eventually(skipped, "a firing has found nothing new", seconds=300)
    assert release.runs() == {first}

    release.change_rows(seed=4)
    eventually(lambda: len(release.runs()) == 2, "a firing has found other rows", seconds=300)
    (second,) = release.runs() - {first}
    eventually(lambda: release.result(second), "the second run has ended", seconds=600)
    assert release.result(second)["state"] == "succeeded"
    assert not release.ended("Failed")


def test_each_scheduled_job_trains(release: Release) -> None:
    release.install(release.values(schedule="0 0 1 1 *", wait=False))
    for number in (1, 2):
        by_hand = ("create", "job", f"firing-{number}", f"--from=cronjob/{NAME}-ccpm-like")
        kubectl(*by_hand, "-n", release.namespace)
    eventually(lambda: len(release.ended("Complete")) == 2, "both have submitted")
    assert len(release.runs()) == 2


def test_runs_survive_launchers_upgrades_and_uninstall(release: Release) -> None:
    spec = release.laptop.spec
    spec["storage"]["secret"] = f"{NAME}-s3-credentials"
    key, secret = CREDENTIALS.values()
    keys = {"secret": {"accessKeyId": key, "secretAccessKey": secret}}
    notes = release.install(release.values() | keys)
    assert f"cpmbee-job list -n {release.namespace}" in notes
    (first,) = eventually(release.runs, "the run is there")
    (launcher,) = release.launchers()
    kubectl("delete", "job", "-n", release.namespace, launcher["metadata"]["name"])
    eventually(lambda: release.result(first), "the run continues without its launcher", seconds=600)
    assert release.result(first)["state"] == "succeeded"

    spec["workers"] |= {"count": 3, "max": 2}
    release.install(release.values() | keys, "upgrade")
    (broken,) = eventually(lambda: release.ended("Failed"), "the broken spec's Job has failed")
    (pod,) = get("pods", "-n", release.namespace, "-l", f"job-name={broken}")["items"]
    said = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert "workers: must have min <= count <= max (got 3 <= 3 <= 2)" in said

    spec["workers"] = {key: value for key, value in spec["workers"].items() if key != "max"} | {"count": 1}
    spec["train"]["epochs"] = 12
    release.install(release.values() | keys, "upgrade")
    eventually(lambda: len(release.runs()) == 2, "the new spec has a run")
    (second,) = release.runs() - {first}

    release.helm("rollback", "1", "--wait")
    eventually(lambda: release.ended("Complete"), "the first spec's Job has adopted its run")
    assert "already succeeded" in release.logs(release.ended("Complete")[-1])
    assert release.runs() == {first, second}

    release.helm("uninstall", "--wait")
    assert release.launchers() == []
    assert release.runs() == {first, second}
    assert not release.result(second)
    run = f"{spec['name']}/{second}"
    eventually(lambda: (release.laptop.status(run)["step"] or 0) >= 5, "it has done 5 steps")
    release.laptop.kill(run, 0)  # what replaces it needs the credentials
    eventually(lambda: release.result(second), "the run continues without the release", seconds=900)
    assert release.result(second)["state"] == "succeeded"
    assert release.result(first)["state"] == "succeeded"

    release.install(release.values() | keys)  # what was kept is taken over
    eventually(lambda: release.ended("Complete"), "the second spec's Job has adopted its run")
    assert release.runs() <= {first, second}


def test_the_development_s3_server(laptop: Laptop) -> None:
    """`helm test` trains with it."""
    release = Release(laptop)
    values = yaml.safe_load((CHART / "ci" / "dev-values.yaml").read_text())
    values |= {"jobs": {}, "caBundle": "", "image": release.values()["image"]}
    values["defaults"] = {key: laptop.spec[key] for key in ("image", "workers")} | {"output": "s3://runs/"}
    image = get("pods", "-A", "-l", "app=s3")["items"][0]["spec"]["containers"][0]["image"]
    values["s3"] = {"enabled": True, "image": image, "program": "/weed"}
    release.install(values)
    said = release.helm("test", "--timeout=10m", "--logs")
    assert re.search(r"helm-test/\w+: succeeded", said)
    assert kubectl("get", "deployments", "-n", release.namespace, "-l", LABEL, "-o", "name").endswith("-s3\n")
