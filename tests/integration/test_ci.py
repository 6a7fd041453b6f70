"""The recipes of docs/how-to/ci/: their schemas, and every shell line against a real object store and an API server.

Their jobs train on this machine.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpmbee_job.launch.kube import naming
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import StoredDelta, read_delta
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.integration.conftest import CREDENTIALS
from tests.integration.jobs import make_job
from tests.integration.kubelet import kubelet
from tests.integration.kubernetes_api import kubernetes_api
from tests.integration.submitting import jobs
from tests.paths import DOCS
from tests.processes import install_client

pytestmark = pytest.mark.timeout(900)  # several trainings each

RECIPES = DOCS / "how-to" / "ci"
PAGE = DOCS / "how-to" / "pipeline.md"
KEY = "17"


@dataclass
class Pipeline:
    """A checkout with job.yaml, and the environment of a runner: access to the cluster and credentials of the object
    store."""

    folder: Path
    cluster: FakeCluster
    kubeconfig: Path
    bucket: str
    storage: StorageSpec
    inherited: int
    """A file descriptor that `cpmbee-job` needs."""
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, shell: tuple[str, ...] = ("sh", "-e"), **variables: str) -> int:
        """The exit status."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "AWS_ENDPOINT_URL": str(self.storage.endpoint_url),
            **CREDENTIALS,
            "KUBECONFIG": str(self.kubeconfig),
            **self.environment,
            **variables,
        }
        command, inherited = [*shell, "-c", script], (self.inherited,)
        done = subprocess.run(command, cwd=self.folder, env=environment, pass_fds=inherited, check=False)
        return done.returncode

    @property
    def production(self) -> str:
        return f"{self.bucket}/production/"

    def in_use(self) -> StoredDelta:
        store = open_store(self.production, self.storage)
        return read_delta(store, json.loads(store.get(keys.BEST))["prefix"])

    def here(self, text: str) -> str:
        """Return a recipe with the URLs of this test."""
        return text.replace("s3://training/runs/", f"{self.bucket}/runs/").replace(
            "s3://training/production/", self.production
        )

    def recipe(self, name: str) -> Any:
        return yaml.safe_load(self.here((RECIPES / name).read_text()))

    def submit(self) -> Run:
        """Submit a run that no pod executes; the file `run` names it."""
        assert self.run("cpmbee-job submit job.yaml > run") == 0
        (job,) = jobs(self.cluster)
        return Run.open(job["metadata"]["annotations"][naming.URL_ANNOTATION], self.storage)


@pytest.fixture
def pipeline(cluster: FakeCluster, tmp_path: Path, bucket: str, s3_storage: StorageSpec) -> Iterator[Pipeline]:
    path = make_job(tmp_path, rows=160)
    spec = yaml.safe_load(path.read_text())
    spec |= {"output": f"{bucket}/runs/", "image": "example/train:1"}
    spec["storage"] = {"endpoint_url": s3_storage.endpoint_url, "secret": "s3"}
    spec["train"] |= {"epochs": 1, "eval_interval": 2}
    path.write_text(yaml.safe_dump(spec))
    inherited = install_client(tmp_path / "bin" / "cpmbee-job")
    with kubernetes_api(cluster, tmp_path) as kubeconfig:
        yield Pipeline(tmp_path, cluster, kubeconfig, bucket, s3_storage, inherited)


@pytest.mark.parametrize(
    ("schema", "recipe"), [("vendor.github-workflows", "github.yml"), ("vendor.gitlab-ci", "gitlab-ci.yml")]
)
def test_recipes_match_the_schemas_of_their_services(schema: str, recipe: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, RECIPES / recipe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_github(pipeline: Pipeline) -> None:
    workflow = pipeline.recipe("github.yml")
    (job,) = workflow["jobs"].values()
    steps = {step["name"]: step for step in job["steps"] if "run" in step}
    secrets = {**CREDENTIALS, "KUBECONFIG": pipeline.kubeconfig.read_text()}
    runner = {
        "RUNNER_TEMP": str(pipeline.folder),
        "GITHUB_ENV": str(pipeline.folder / "env"),
        "GITHUB_RUN_ID": KEY,
        "GITHUB_STEP_SUMMARY": str(pipeline.folder / "page.md"),
    }

    def run(step: dict[str, Any]) -> int:
        """Run a step as the runner does."""
        expressions = {**workflow["env"], **step.get("env", {})}
        values = {
            name: re.sub(r"\$\{\{ secrets\.(\w+) \}\}", lambda found: secrets[found[1]], text)
            for name, text in expressions.items()
        }
        assert "{{" not in step["run"]
        assert workflow["defaults"]["run"]["shell"] == "bash"
        return pipeline.run(step["run"], ("bash", "--noprofile", "--norc", "-eo", "pipefail"), **values, **runner)

    pipeline.environment["KUBECONFIG"] = "/nowhere"
    assert run(steps.pop("Configure cluster access")) == 0
    pipeline.environment |= dict(line.split("=") for line in (pipeline.folder / "env").read_text().splitlines())

    submitted = pipeline.submit()
    cancel = steps.pop("Cancel")
    assert cancel["if"] == "cancelled()"
    assert run(cancel) == 0
    assert (submitted.result() or {})["state"] == "cancelled"
    (pipeline.folder / "run").unlink()
    assert run(cancel) == 0, "there is nothing to cancel"

    with kubelet(pipeline.cluster):
        assert [run(step) for step in steps.values()] == [0] * len(steps)
        reference = (pipeline.folder / "run").read_text().strip()
        assert pipeline.in_use().run == f"{pipeline.bucket}/runs/{reference}"
        page = (pipeline.folder / "page.md").read_text()
        assert f"### {reference}: succeeded" in page
        assert "### promoted to" in page
        assert (pipeline.folder / "junit.xml").is_file()
        # a worse delta does not fail the pipeline
        worsen(pipeline)
        assert [run(step) for step in steps.values()] == [0] * len(steps)
        assert pipeline.in_use().run == f"{pipeline.bucket}/runs/{reference}"


def test_on_gitlab(pipeline: Pipeline) -> None:
    recipe = pipeline.recipe("gitlab-ci.yml")
    runner = {**recipe["variables"], "CI_PIPELINE_ID": KEY}

    def run(line: str, status: str = "success") -> int:
        return pipeline.run(line, CI_JOB_STATUS=status, **runner)

    submitted = pipeline.submit()
    (after,) = recipe["train"]["after_script"]
    assert run(after) == 0
    assert submitted.result() is None
    assert run(after, "canceled") == 0
    assert (submitted.result() or {})["state"] == "cancelled"

    with kubelet(pipeline.cluster):
        lines = [*recipe["train"]["script"], *recipe["promote"]["script"]]
        assert [run(line) for line in lines] == [0] * len(lines)
        first = pipeline.in_use().run
        worsen(pipeline)
        assert [run(line) for line in lines] == [0, recipe["promote"]["allow_failure"]["exit_codes"]]
        assert pipeline.in_use().run == first
    for path in (*recipe["train"]["artifacts"]["paths"], recipe["train"]["artifacts"]["reports"]["junit"]):
        assert (pipeline.folder / path).is_file()
    assert (pipeline.folder / recipe["promote"]["artifacts"]["paths"][0]).is_file()


def test_in_argo_workflows(pipeline: Pipeline) -> None:
    document = pipeline.recipe("argo.yaml")
    spec = document["spec"]["workflowSpec"]
    templates = {template["name"]: template for template in spec["templates"]}
    volumes = {volume["name"] for volume in spec["volumes"]}
    results = {"workflow.uid": KEY}
    with kubelet(pipeline.cluster):
        for (step,) in templates[spec["entrypoint"]]["steps"]:
            template = templates[step["template"]]
            container = template["container"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            given = {one["name"]: one["value"] for one in step.get("arguments", {}).get("parameters", ())}
            assert set(given) == {one["name"] for one in template.get("inputs", {}).get("parameters", ())}
            results |= {f"inputs.parameters.{name}": filled(value, results) for name, value in given.items()}
            arguments = [filled(text, results) for text in container["args"]]
            command = [*container["command"], *(text.replace("/jobs/", f"{pipeline.folder}/") for text in arguments)]
            assert pipeline.run(f"{shlex.join(command)} > stdout") == 0
            results[f"steps.{step['name']}.outputs.result"] = (pipeline.folder / "stdout").read_text().strip()
    assert pipeline.in_use().run.endswith(results["steps.train.outputs.result"])


def test_the_commands_of_the_page(pipeline: Pipeline) -> None:
    block = re.search(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    (pipeline.folder / "models").mkdir()
    (pipeline.folder / "models" / "cpm-bee").symlink_to(pipeline.folder / "model")
    rows = (pipeline.folder / "eval.jsonl").read_text().splitlines(keepends=True)
    (pipeline.folder / "questions.jsonl").write_text("".join(rows[:2]))
    with kubelet(pipeline.cluster):
        assert pipeline.run(f"set -e\n{pipeline.here(block[1])}", CI_PIPELINE_ID=KEY) == 0
    assert pipeline.in_use().run.endswith((pipeline.folder / "run").read_text().strip())


def test_with_make(pipeline: Pipeline) -> None:
    (pipeline.folder / "Makefile").write_text(pipeline.here((RECIPES / "Makefile").read_text()))
    with kubelet(pipeline.cluster):
        assert pipeline.run("make promote") == 0
    reference = (pipeline.folder / "run").read_text().strip()
    assert pipeline.in_use().run == f"{pipeline.bucket}/runs/{reference}"
    assert "promoted to" in (pipeline.folder / "summary.md").read_text()


def test_in_a_shell_a_rerun_changes_nothing_and_a_worse_delta_is_refused(pipeline: Pipeline) -> None:
    pipeline.environment |= {
        "KEY": KEY,
        "MODEL": "model/",
        "EVAL": "eval.jsonl",
        "CPMBEE_OUTPUT": f"{pipeline.bucket}/runs",
        "PRODUCTION": pipeline.production,
    }
    script = f"sh {RECIPES / 'pipeline.sh'}"
    with kubelet(pipeline.cluster) as trained:
        assert pipeline.run(script) == 0
        first = pipeline.in_use()
        assert len(first.scores) == 1, "evaluated on the records of data.eval"
        assert pipeline.run(script) == 0
        assert len(trained) == len(jobs(pipeline.cluster)) == 1
        assert pipeline.in_use().prefix == first.prefix
        worsen(pipeline)
        assert pipeline.run(script, KEY="18") == 5
        assert len(trained) == 2
        assert pipeline.in_use().prefix == first.prefix
        # other evaluation records: the script evaluates both deltas on them
        rows = (pipeline.folder / "eval.jsonl").read_text().splitlines(keepends=True)
        (pipeline.folder / "eval.jsonl").write_text("".join(rows[:20]))
        assert pipeline.run(script, KEY="19") == 5
        assert len(pipeline.in_use().scores) == 2


def filled(text: str, values: dict[str, str]) -> str:
    """Return the text with Argo's parameters filled in."""
    return re.sub(r"\{\{(.+?)\}\}", lambda found: values[found[1]], text)


def worsen(pipeline: Pipeline) -> None:
    """Replace the training records with ones whose answers are useless."""
    path = pipeline.folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**row, "<ans>": "？。，"}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
