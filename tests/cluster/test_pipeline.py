"""docs/how-to/ci/pipeline.sh on a real cluster, in a fresh environment, with only the token of a service account."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.run import keys
from cpmbee_job.run.deltas import StoredDelta, read_delta
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.cluster import s3
from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import get
from tests.integration.jobs import install
from tests.paths import DOCS, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

PAGE = DOCS / "how-to" / "pipeline.md"
SCRIPT = DOCS / "how-to" / "ci" / "pipeline.sh"


@pytest.fixture
def kubeconfig(laptop: Laptop) -> Path:
    """Of a service account that may only submit in the namespace of the job: what the page does for it."""
    (block,) = re.findall(r"^```bash\n(kubectl .*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    script = re.sub(r"(-n |namespace=|serviceaccount=)ml\b", rf"\g<1>{laptop.namespace}", block)
    (laptop.folder / "k8s").symlink_to(ROOT / "k8s")
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=laptop.folder, check=True)
    return laptop.folder / "pipeline.kubeconfig"


def test_a_pipeline_trains_once_promotes_and_refuses_a_worse_delta(laptop: Laptop, kubeconfig: Path) -> None:
    folder, storage = laptop.folder, laptop.spec["storage"]
    laptop.spec["cluster"].pop("namespace")  # the token's own
    assert laptop.job.is_file()
    examples = folder / "examples"
    assert laptop.run("reformat", "--input", folder / "raw", "--output", examples, "--format", "ccpm").code == 0
    programs = install(folder / "bin")
    production = f"{laptop.spec['output']}-production"

    def pipeline(key: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            **s3.CREDENTIALS,
            "AWS_ENDPOINT_URL": storage["launcher_endpoint_url"],
            "KEY": key,
            "MODEL": "model/",
            "EVAL": "examples/eval.jsonl",
            "CPMBEE_OUTPUT": laptop.spec["output"],
            "PRODUCTION": production,
        }
        return subprocess.run(["sh", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False)

    def in_use() -> StoredDelta:
        store = open_store(production, StorageSpec(endpoint_url=storage["launcher_endpoint_url"]))
        return read_delta(store, json.loads(store.get(keys.BEST))["prefix"])

    done = pipeline("1")
    assert done.returncode == 0, done.stderr
    first = in_use()
    (digest,) = first.scores
    assert first.trained_digest == digest, "what the pods trained on is what was evaluated here"

    again = pipeline("1")
    assert again.returncode == 0, again.stderr
    assert len(pytorchjobs(laptop)) == 1
    assert in_use().prefix == first.prefix

    rows = folder / "raw" / "train.jsonl"
    worse = [json.loads(line) | {"target": "0"} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in worse))
    refused = pipeline("2")
    assert refused.returncode == 5, refused.stderr
    assert f"{first.scores[digest].loss:.6f}" in refused.stderr
    assert len(pytorchjobs(laptop)) == 2
    assert in_use().prefix == first.prefix
    summary = (folder / "summary.md").read_text()
    assert summary.count(": succeeded") == 3
    assert "### not promoted to" in summary


def pytorchjobs(laptop: Laptop) -> list[Any]:
    found: list[Any] = get("pytorchjobs", "-n", laptop.namespace)["items"]
    return found
