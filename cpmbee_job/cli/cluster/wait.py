from cpmbee_job.cli.cluster.attach import attach
from cpmbee_job.cli.shared.ci_report import reported
from cpmbee_job.cli.shared.options import AsJson, PipelineOptions, RunOptions, RunReference, Timeout
from cpmbee_job.cli.shared.signals import cancelling, require_cancellable


def wait(
    run: RunReference, pipeline: PipelineOptions, where: RunOptions, timeout: Timeout = None, as_json: AsJson = False
) -> None:
    """Wait until a run ends, and exit with its exit code.

    0: succeeded, and result and delta are stored. 100: failed, or a more specific code such as 3 for invalid data.
    101: still running after --timeout. 102: no such run. 103: cancelled. 130: Ctrl-C; the run continues. Failures of
    the Kubernetes API or the object store never end the wait.

    Example: cpmbee-job wait ccpm/0a1b2c3d4e5f --timeout 2h
    """
    cancel = pipeline.cancel_on_signal
    with (
        reported(run, pipeline.summary, pipeline.junit, as_json=as_json) as report,
        cancelling(cancel, report.see) as signals,
    ):
        found, cluster = where.find(run)
        require_cancellable(cancel, found, cluster)
        signals.watch(found, cluster)
        attach(found, cluster, timeout, on_status=report.see)
