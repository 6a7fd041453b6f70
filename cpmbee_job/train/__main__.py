"""The entrypoint of a training container: `python -m cpmbee_job.train RUN_URL`.

Runs torchrun, restarts it after failures, and exits with the exit code of the run's result. On a cluster torchrun reads
its settings from `PET_*` variables, elsewhere the number of processes is `--processes`.
"""

import argparse
import sys
from functools import partial

from cpmbee_job.errors import AccessError, CpmbeeError, DamagedError, DiskError
from cpmbee_job.process import pod
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.retry import with_retries
from cpmbee_job.train.supervisor import End, Supervisor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cpmbee_job.train", description=__doc__)
    parser.add_argument("run", help="URL of the run's folder")
    parser.add_argument("--processes", type=int, default=1, help="workers on this machine (without PET_* variables)")
    arguments = parser.parse_args()
    try:
        pod.require_contract()
        open_run = partial(Run.open, arguments.run, StorageSpec.from_environment())
        run = with_retries(open_run, permanent=(AccessError, DamagedError, DiskError))
        end = Supervisor(run, arguments.processes).supervise()
    except CpmbeeError as error:
        sys.stderr.write(f"error: {error}\n")
        end = End(error.exit_code, str(error))
    pod.write_termination_message(end.reason)
    sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
