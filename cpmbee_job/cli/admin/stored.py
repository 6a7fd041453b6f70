"""List and verify checkpoints; delete what no run needs."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from rich import filesize

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import argument, flag
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference, StoreOptions, duration_option
from cpmbee_job.errors import DamagedError, UsageError


def list_(run: RunReference, where: RunOptions, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, newest first.

    The run resumes from the first one that is listed without a problem.

    Example: cpmbee-job checkpoints list ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.runs.verify import list_checkpoints

    found = where.open(run)
    listed = list_checkpoints(found.store)
    lines = []
    for one in listed:
        written = "" if one.modified is None else f"{datetime.fromtimestamp(one.modified, UTC):%Y-%m-%dT%H:%M:%SZ}"
        line = f"step {one.step}  attempt {one.attempt}  {filesize.decimal(one.size or 0)}  {written}"
        problem = one.problem or ("superseded by a later attempt" if one.is_overtaken else "")
        lines.append(f"{line}  {problem}".rstrip())
    document = {"url": found.url, "checkpoints": [asdict(one) for one in listed]}
    console.print_result(document, lines, as_json=as_json)
    if not listed:
        console.say("no checkpoints (yet)")


def verify(run: RunReference, where: RunOptions, as_json: AsJson = False) -> None:
    """Verify the hashes of a run's checkpoints and deltas.

    Also counts the packed rows that were trained on twice or never. The exit code is 4 if anything is damaged.

    Example: cpmbee-job checkpoints verify ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.runs.verify import verify_run

    found = where.open(run)
    report = verify_run(found)
    checked = report.checkpoints
    lines = [f"checkpoint of step {one.step}, attempt {one.attempt}: {one.problem or 'ok'}" for one in checked]
    lines += [f"delta {name}: {problem or 'ok'}" for name, problem in report.deltas.items()]
    console.print_result(asdict(report), [*lines, report.row_summary()], as_json=as_json)
    if report.problems:
        newest = next((one for one in checked if one.is_resumable), None)
        position = "from the beginning" if newest is None else f"after step {newest.step}"
        raise DamagedError(f"{found.url}: {len(report.problems)} damaged; the run would resume {position}")


def gc(
    output: Annotated[str, argument("OUTPUT", "Folder of all runs (the spec's output).", envvar="CPMBEE_OUTPUT")],
    store: StoreOptions,
    delete: Annotated[bool, flag("--delete", "Delete the objects instead of only listing them.")] = False,
    older_than: Annotated[
        float, duration_option("--older-than", "Keep newer objects: 90m, 24h, 7d; at least 1h.")
    ] = "24h",  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """List, or delete, stored objects that no run needs.

    These are superseded and incomplete checkpoints, prepared data and uploads that no run refers to, incomplete
    uploads, and what `evaluate` and `predict` started with --on-cluster but never finished. Results are kept.
    docs/reference/formats.md has the rules.

    Example: cpmbee-job gc s3://bucket/runs --delete
    """
    from cpmbee_job.launch.lifecycle.garbage import collect, find_garbage

    if older_than < 3600:  # an active writer completes, retries or fails long before
        raise UsageError("--older-than: must be at least 1h, to spare objects that are being written")
    storage = store.storage().seen_by_launcher()
    findings = find_garbage(output, storage, time.time() - older_than)
    console.warn(*findings.notes)
    garbage = findings.garbage
    if delete:
        garbage = tuple(collect(findings, storage, lambda one: console.say(f"deleted {one.url}")))
    num_bytes = sum(one.num_bytes for one in garbage)
    found = [{"kind": one.kind, "url": one.url, "why": one.why, "bytes": one.num_bytes} for one in garbage]
    document = {"output": output, "deleted": delete, "bytes": num_bytes, "garbage": found}
    lines = [f"{one.kind:<12}{filesize.decimal(one.num_bytes):>10}  {one.url}  ({one.why})" for one in garbage]
    console.print_result(document, [] if delete else lines, as_json=as_json)
    outcome = "deleted" if delete else "can be deleted (--delete)" if garbage else "found"
    console.say(f"{filesize.decimal(num_bytes)} in {len(garbage)} places {outcome}")
