"""Write, validate, prepare and train jobs on this machine."""

from importlib import resources
from pathlib import Path
from typing import Annotated

from cpmbee_job.cli.shared import console, extras
from cpmbee_job.cli.shared.commands import argument, flag, option
from cpmbee_job.cli.shared.options import AsJson, ClusterOptions, JobOptions
from cpmbee_job.errors import RefusedError, UsageError


def init(file: Annotated[Path, argument("JOB.yaml", "The file to write.")] = Path("job.yaml")) -> None:
    """Write a commented job spec to start from.

    Example: cpmbee-job init job.yaml
    """
    template = resources.files("cpmbee_job.cli.local").joinpath("job.yaml").read_text(encoding="utf-8")
    name = "".join(c if c.isalnum() else "-" for c in file.stem.lower()).strip("-") or "job"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(template.replace("{file}", str(file)).replace("{name}", name))
    except FileExistsError as error:
        raise RefusedError(f"{file}: exists already", hint="choose another file") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    console.say(f"wrote {file}; edit it, then check it with `cpmbee-job validate {file}`")


def validate(
    job: JobOptions,
    where: ClusterOptions,
    server: Annotated[bool, flag("--server", "Also do dry runs on the cluster: operator, admission, quotas.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a job spec and print it with all defaults.

    Example: cpmbee-job validate job.yaml --server
    """
    from cpmbee_job.launch.checks.gpu_memory import require_room
    from cpmbee_job.launch.checks.server_check import check_on_server, rendered
    from cpmbee_job.launch.manifest.render import remarks

    spec = job.load()
    require_room(spec)
    console.warn(*(f"{job.job}: {remark}" for remark in remarks(spec)))
    if server:
        cluster = where.connect(spec.cluster.namespace)
        verdict = check_on_server(cluster, spec, rendered(spec, cluster.namespace))
        console.warn(*verdict.warnings)
        console.warn(*(f"not permitted, so not checked: {request}" for request in verdict.not_permitted))
        place = f"{cluster.address}, namespace {cluster.namespace}"
        verdict.require_accepted(str(job.job), place)
        limit = ", as far as it could be checked" if verdict.not_permitted else ""
        console.say(f"{place} would accept {job.job}{limit}")
    console.print_result(spec.model_dump(mode="json"), spec.to_yaml().splitlines(), as_json=as_json)
    if not as_json:
        console.say(f"{job.job} is valid; packed rows in a step: {spec.global_batch_size}")


def prepare(job: JobOptions, as_json: AsJson = False) -> None:
    """Tokenize, encode and pack the data of a job.

    Data that is prepared already is reused.

    Example: cpmbee-job prepare job.yaml
    """
    from cpmbee_job.data.prepare.job_data import describe, prepare_bar, prepare_job

    spec = job.load()
    with prepare_bar(console.stderr) as progress:
        document = prepare_job(spec, spec.storage.seen_by_launcher(), progress=progress)
    lines = [describe(split, document[split]) for split in ("train", "eval") if document[split] is not None]
    console.print_result(document, lines, as_json=as_json)


def local(
    job: JobOptions,
    processes: Annotated[
        int | None, option("--processes", "N", "Processes. Default: workers.count x max(workers.gpus, 1).", min=1)
    ] = None,
    run_id: Annotated[
        str | None, option("--run-id", "ID", "Run id. Reuse an id to resume a stopped run. Default: a new id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job on this machine: prepare, train, store the delta.

    Example: cpmbee-job local job.yaml --set train.epochs=1
    """
    from cpmbee_job.launch.local import run_local
    from cpmbee_job.run.run import Run, check_run_id, new_run_id

    spec = job.load()
    extras.require("train")  # before anything is written
    storage = spec.storage.seen_by_launcher()
    run = Run.start(spec, new_run_id() if run_id is None else check_run_id(run_id), storage)
    console.say(f"run {run.url}")
    result = run_local(run, processes or spec.workers.count * max(spec.workers.gpus, 1))
    scores, best = result["scores"], "no evaluation"
    if scores["best_step"]:
        best = f"best eval loss {scores['eval_loss']:.4f} at step {scores['best_step']}"
    console.say(f"succeeded after {result['steps']} steps ({result['reason']}), {best}")
    console.print_result(result, [run.url], as_json=as_json)
