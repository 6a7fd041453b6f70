from pathlib import Path
from typing import Annotated

from rich.text import Text

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import argument, option
from cpmbee_job.cli.shared.options import STORE, AsJson, ClusterOptions, JobOptions, Overrides, StoreOptions
from cpmbee_job.errors import PreflightError, UsageError

STYLES = {"ok": "green", "warning": "yellow", "problem": "red", "not_permitted": "cyan"}


def doctor(
    cluster: ClusterOptions,
    store: StoreOptions,
    job: Annotated[Path | None, argument("JOB.yaml", "A job spec: check all that it requires.")] = None,
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        option("--output", "URL", "Output folder of runs to check, without a job spec.", STORE, envvar="CPMBEE_OUTPUT"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the cluster and the object store for a job.

    Each problem comes with a hint how to fix it; the exit code is 4 if there is any. Nothing is changed, except that an
    object is written below the output and deleted again.

    Example: cpmbee-job doctor job.yaml
    """
    from cpmbee_job.launch.checks.doctor import examine_all

    namespace = None
    if job is None:
        if overrides:
            raise UsageError("--set requires a JOB.yaml to override")
        spec, storage = None, store.storage()
    else:
        spec = JobOptions(job, overrides).load()
        storage, output, namespace = spec.storage.seen_by_launcher(), spec.output, spec.cluster.namespace
    findings = []
    with console.stderr.status("checking ...") as status:
        for finding in examine_all(lambda: cluster.connect(namespace), spec, output, storage):
            findings.append(finding)
            status.update(f"checking ... {finding.check}")
    lines = []
    for one in findings:
        state = f"{one.state.replace('_', ' '):<14}"
        lines.append(Text.assemble((state, STYLES[one.state]), f"{one.check}: {one.detail}"))
        if one.hint is not None and one.state != "ok":
            lines.append(Text(f"{'':<14}hint: {one.hint}"))
    console.print_result([vars(one) for one in findings], lines, as_json=as_json)
    problems = sum(finding.state == "problem" for finding in findings)
    if problems:
        raise PreflightError(f"{problems} of {len(findings)} checks failed")
