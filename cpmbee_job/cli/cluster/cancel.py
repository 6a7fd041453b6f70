import getpass
import os
from typing import Annotated

from cpmbee_job.cli.cluster.run_text import run_fields
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import option
from cpmbee_job.cli.shared.options import AsJson, RunOptions, RunReference, seconds


def cancel(
    run: RunReference,
    where: RunOptions,
    timeout: Annotated[
        float | None,
        option("--timeout", "DURATION", "Time limit for the pods. Default: their grace period + 1m.", parser=seconds),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a run; its pods write a checkpoint first.

    All that the run has stored is kept, and `resume` continues it.

    Example: cpmbee-job cancel ccpm/0a1b2c3d4e5f
    """
    from cpmbee_job.launch.lifecycle.cancel import cancel

    found, cluster = where.find_on_cluster(run)
    name = found.reference
    console.say(f"cancelling {name}; its pods write a checkpoint")
    done = cancel(found, cluster, f"cancelled by {_user()}", timeout=timeout)
    console.say(f"{name} is cancelled: {done}; resume it with `cpmbee-job resume {found.arguments(None)}`")
    if as_json:
        console.print_json({**run_fields(found, cluster.namespace), "why": done})


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = f"user {os.getuid()}"
    return f"{user} on {os.uname().nodename}"
