"""The verb `doctor`: what a job needs, looked at before anything runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cpmbee_job.cli.local.job import AsJson, Overrides
from cpmbee_job.cli.shared import cluster_options, console
from cpmbee_job.cli.shared.storage_options import EndpointUrl, PathStyle
from cpmbee_job.cli.shared.storage_options import storage as storage_of
from cpmbee_job.errors import PreflightError, UsageError
from cpmbee_job.spec import load_spec

if TYPE_CHECKING:
    from cpmbee_job.launch.checks.check_result import CheckResult

STYLES = {"ok": "green", "warning": "yellow", "problem": "red", "not_permitted": "cyan"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.yaml]", help="A job spec, to look at all that it needs.")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        typer.Option(envvar="CPMBEE_OUTPUT", help="Where runs shall lie, without a job spec: the store to look at."),
    ] = None,
    endpoint_url: EndpointUrl = None,
    path_style: PathStyle = None,
    context: cluster_options.Context = None,
    namespace: cluster_options.JobNamespace = None,
    as_json: AsJson = False,
) -> None:
    """Look for what a job could lack in the cluster and the store, and say how to mend it.

    Ends with 4 where something is missing. Nothing is changed, but for an object that is written below the output and
    removed again.

    Example: cpmbee-job doctor job.yaml
    """
    from cpmbee_job.launch.checks.doctor import examine_all

    if job is None:
        if overrides:
            raise UsageError("--set: there is no JOB.yaml to override")
        spec, storage = None, storage_of(endpoint_url, path_style)
    else:
        spec = load_spec(job, overrides or ())
        storage, output = spec.storage.seen_by_launcher(), spec.output
        namespace = namespace or spec.cluster.namespace
    findings = []
    with console.stderr.status("looking ...") as status:
        for finding in examine_all(lambda: cluster_options.connect(context, namespace), spec, output, storage):
            findings.append(finding)
            status.update(f"looking ... {finding.check}")
    if as_json:
        console.print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
    problems = sum(finding.state == "problem" for finding in findings)
    if problems:
        raise PreflightError(f"{problems} of {len(findings)} checks found something missing")


def _show(finding: "CheckResult") -> None:
    line = Text(f"{finding.state.replace('_', ' '):<14}", style=STYLES[finding.state])
    line.append(f"{finding.check}: {finding.detail}", style="default")
    if finding.hint is not None and finding.state != "ok":
        line.append(f"\n{'':<14}hint: {finding.hint}", style="default")
    console.stdout.print(line)
