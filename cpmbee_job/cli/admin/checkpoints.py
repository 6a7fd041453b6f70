from dataclasses import asdict
from datetime import UTC, datetime

from rich import filesize

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference
from cpmbee_job.errors import DamagedError


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
