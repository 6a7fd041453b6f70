"""`make chaos`: one training run under random faults, and what it has lost; see docs/explanation/reliability.md.

CHAOS_FAULTS says how many (60), CHAOS_SEED which (drawn, and printed). `python -m tests.chaos` prints the table,
`--json` one document, `--write` also records it in docs/explanation/reliability.md. Exits with 1 if anything was lost,
and takes at most 40 s for each fault (8 minutes if they are few).
"""

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from cpmbee_job.process import contract
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.embedded import embedded_s3
from cpmbee_job.store.urls import open_store
from tests.chaos.driver import Driver, OutOfTimeError
from tests.chaos.judge import Verdict, judge
from tests.chaos.plan import CHECKPOINT_INTERVAL, EVAL_INTERVAL, KINDS, Plan, draw
from tests.chaos.report import table, write
from tests.integration.disk import small_disk
from tests.integration.faults import fault_proxy
from tests.integration.jobs import cli, make_job
from tests.paths import DOCS

PAGE = DOCS / "explanation" / "reliability.md"
ROWS, GLOBAL_BATCH = 45, 4
"""Of the job of `make_job`."""
LEAST_SECONDS, SECONDS_PER_FAULT = 480.0, 40.0
"""At which all of it ends, the undisturbed run included."""

JOB = f"""\
name: chaos
model: s3://chaos/model/
data: {{train: s3://chaos/data/train.jsonl, eval: s3://chaos/data/eval.jsonl}}
output: s3://chaos/runs/
train: {{batch_size: 2, global_batch_size: {GLOBAL_BATCH}, max_length: 256, lr: 1.0e-4, lr_decay_style: constant,
        eval_interval: {EVAL_INTERVAL}, checkpoint_interval: {CHECKPOINT_INTERVAL}, early_stop_patience: 0,
        stall_timeout: 20, deterministic: true}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", action="store_true", help="record the table in docs/explanation/reliability.md")
    parser.add_argument("--plan", action="store_true", help="only print the faults")
    parser.add_argument("--keep", type=Path, help="folder that keeps the store and the pods' log")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started here ends with us
    count = int(os.environ.get("CHAOS_FAULTS") or 60)
    seed = os.environ.get("CHAOS_SEED") or secrets.token_hex(4)
    with _folder(options.keep) as folder, small_disk(folder / "disk", "64m") as can_be_full:
        kinds = [kind for kind in KINDS if can_be_full or kind.name != "full disk"]
        plan = draw(seed, count, kinds)
        if options.plan:
            for fault in plan.faults:
                print(f"{fault.number}  {fault.text()}")
            return
        _report(f"{count} faults, CHAOS_SEED={seed}" + ("" if can_be_full else "; no disk can be made here to be full"))
        verdict = execute(plan, folder)
    if options.json:
        print(json.dumps(asdict(verdict)))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(table(verdict))
    if options.write:
        write(PAGE, verdict)
    for problem in verdict.problems:
        _report(f"LOST: {problem}")
    sys.exit(bool(verdict.problems))


def execute(plan: Plan, folder: Path) -> Verdict:
    begun_at = time.monotonic()
    seconds = max(LEAST_SECONDS, SECONDS_PER_FAULT * len(plan.faults))
    os.environ |= {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    keys = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    with (
        embedded_s3(folder / "s3", **keys, buckets=["chaos"]) as server,
        fault_proxy(server.endpoint_url) as proxy,
    ):
        calm, shaky = StorageSpec(endpoint_url=server.endpoint_url), StorageSpec(endpoint_url=proxy.url)
        steps_per_epoch = -(-ROWS // GLOBAL_BATCH)
        job = _upload(folder, calm, epochs=-(-plan.steps // steps_per_epoch))
        undisturbed = "s3://chaos/undisturbed/chaos/calm"
        _report(f"the undisturbed run: at least {plan.steps} steps")
        done = cli("local", job, "--run-id=calm", "--set=output=s3://chaos/undisturbed/")
        if done.code:
            sys.exit(f"error: the undisturbed run ended with {done.code}:\n{done.err}")
        run = Run.begin(parse_spec(job.read_text(), source=str(job)), plan.seed, calm)
        environment = {contract.STORAGE_ENV: shaky.model_dump_json()}
        left = seconds - (time.monotonic() - begun_at)
        driver = Driver(plan, run, proxy, environment, folder, folder / "disk", left, _report)
        ended_early = ""
        try:
            driver.drive()
        except OutOfTimeError:
            ended_early = f"the run has not ended in {seconds:.0f} s"
        verdict = judge(driver, undisturbed, calm, ended_early)
        verdict.seconds = round(time.monotonic() - begun_at, 1)
        return verdict


def _upload(folder: Path, storage: StorageSpec, epochs: int) -> Path:
    """Data and model into the store; the job's file."""
    job = make_job(folder)
    bucket = open_store("s3://chaos", storage)
    for name in ("train.jsonl", "eval.jsonl"):
        bucket.upload(folder / name, f"data/{name}")
    for path in (folder / "model").iterdir():
        bucket.upload(path, f"model/{path.name}")
    place = f"storage: {{endpoint_url: {storage.endpoint_url}}}\n"
    job.write_text(JOB.replace("train: {batch", f"train: {{epochs: {epochs}, batch") + place, encoding="utf-8")
    return job


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def _report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
