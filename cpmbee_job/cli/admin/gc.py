import time
from typing import Annotated

from rich import filesize

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import argument, flag
from cpmbee_job.cli.shared.options import AsJson, StoreOptions, duration_option
from cpmbee_job.errors import UsageError

MIN_AGE = 3600.0
"""Seconds. An active writer completes, retries or fails long before."""


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

    if older_than < MIN_AGE:
        raise UsageError("--older-than: must be at least 1h, to spare objects that are being written")
    storage = store.storage().seen_by_launcher()
    findings = find_garbage(output, storage, time.time() - older_than)
    for note in findings.notes:
        console.warn(note)
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
