"""`cpmbee-job local` on real processes: the same loss curve for any world size and any fault, and correct results."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.integration.jobs import (
    children,
    cli,
    descendants,
    losses,
    make_job,
    metrics,
    start,
    wait_for,
    wait_until_gone,
    workers,
)

LONG = ["--set", "train.epochs=20", "--set", "train.early_stop_patience=0"]
"""120 steps, of which the first 12 are those of the undisturbed run: time enough to disturb it."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def undisturbed(job: Path) -> Path:
    """An undisturbed run on one process."""
    done = cli("local", job, "--run-id", "one", "--processes", 1)
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_a_run_writes_the_documented_objects(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "result.json").read_text())
    assert (result["state"], result["reason"], result["steps"]) == ("succeeded", "finished", 12)
    status = json.loads((undisturbed / "status.json").read_text())
    assert (status["state"], status["step"], status["progress"]) == ("succeeded", 12, 1.0)
    assert {p.name for p in (undisturbed / "checkpoints").iterdir()} == {"8", "10", "12", "LATEST"}
    best = json.loads((undisturbed / "delta" / "BEST").read_text())
    folder = undisturbed / best["prefix"]
    assert {p.name for p in folder.iterdir()} == {"delta.safetensors", "cpm_bee_finetune.pt", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["r"], manifest["alpha"], manifest["step"]) == (8, 16, best["step"])
    assert list((undisturbed / "tensorboard").rglob("events.*"))
    assert list((undisturbed / "logs").rglob("00001.log"))


def test_metrics_have_a_line_for_every_step(undisturbed: Path) -> None:
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {line["epoch"] for line in lines} == {1, 2}
    assert set(lines[0]) == {
        "event", "step", "epoch", "attempt", "loss", "lr", "grad_norm", "tokens", "target_tokens", "tokens_per_s",
        "loss_scale",
    }  # fmt: skip
    assert [line["step"] for line in metrics(undisturbed, "eval")] == [4, 8, 12]


def test_it_learns(undisturbed: Path) -> None:
    curve = losses(undisturbed)
    assert curve[-1] < 0.6 * curve[0]


def test_checkpoints_are_listed_and_verified(undisturbed: Path, tmp_path: Path) -> None:
    listed = json.loads(cli("checkpoints", "list", undisturbed, "--json").out)["checkpoints"]
    assert [(one["step"], one["attempt"], one["problem"]) for one in listed] == [
        (12, 1, None),
        (10, 1, None),
        (8, 1, None),
    ]
    verified = cli("checkpoints", "verify", undisturbed)
    assert verified.code == 0, verified.err
    assert "rows: 90 in 12 steps, 0 twice in an epoch, 0 never" in verified.out
    assert "delta delta/12.1/: ok" in verified.out

    run = tmp_path / "runs" / "weather" / "one"
    shutil.copytree(undisturbed, run)
    state = next((run / "checkpoints" / "12").glob("state.*"))
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    (run / "checkpoints" / "10" / "state.1.safetensors").unlink()
    damaged = cli("checkpoints", "verify", run, "--json")
    assert damaged.code == 4
    assert "would resume after step 8" in damaged.err
    problems = [one["problem"] for one in json.loads(damaged.out)["checkpoints"]]
    assert "size or SHA-256 differs from its manifest" in problems[0]
    assert "no such file" in problems[1]
    assert problems[2] is None


def test_a_fresh_run_has_no_garbage(undisturbed: Path) -> None:
    output = undisturbed.parents[1]
    assert json.loads(cli("gc", output, "--json").out) == {
        "output": str(output), "deleted": False, "bytes": 0, "garbage": [],
    }  # fmt: skip
    refused = cli("gc", output, "--older-than", "5m", "--delete")
    assert refused.code == 2
    assert "must be at least 1h" in refused.err


def test_no_scratch_files_stay(undisturbed: Path) -> None:
    assert not [p for p in undisturbed.rglob("*") if p.name.startswith(".")]


def test_examples_are_not_logged(undisturbed: Path) -> None:
    for log in (undisturbed / "logs").rglob("*.log"):
        assert "天气" not in log.read_text()


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 3), (3, 1)])  # 8 rows: shares of 4 and 4; of 2, 3 and 3
def test_any_number_of_processes_gives_the_same_loss_curve(
    job: Path, undisturbed: Path, processes: int, batch_size: int
) -> None:
    world = ["--run-id", f"world-{processes}", "--processes", processes, "--set", f"train.batch_size={batch_size}"]
    done = cli("local", job, *world, "--json")
    assert done.code == 0, done.err
    run = Path(json.loads(done.out)["run"])
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-4)
    for count in ("tokens", "target_tokens", "epoch"):  # padding rows of a rank are not counted
        assert [line[count] for line in metrics(run)] == [line[count] for line in metrics(undisturbed)]
    ours, theirs = metrics(run, "eval"), metrics(undisturbed, "eval")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)


def test_a_finished_run_is_reported_and_not_repeated(job: Path, undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").stat().st_mtime_ns
    done = cli("local", job, "--run-id", "one")
    assert done.code == 0
    assert (undisturbed / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_different_job_with_the_same_id_is_refused(job: Path, undisturbed: Path) -> None:
    done = cli("local", job, "--run-id", "one", "--set", "train.lr=1e-5")
    assert done.code == 5
    assert "train.lr: 0.003 -> 1e-05" in done.err


def test_a_run_killed_at_any_moment_resumes_on_another_number_of_processes(job: Path, undisturbed: Path) -> None:
    run = undisturbed.parent / "killed"
    process = start("local", job, "--run-id", "killed", "--processes", 2, *LONG)
    wait_for(run / "checkpoints" / "4" / "manifest.1.json")
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (run / "result.json").exists()

    done = cli("local", job, "--run-id", "killed", "--processes", 3, *LONG)
    assert done.code == 0, done.err
    assert losses(run)[:12] == pytest.approx(losses(undisturbed), rel=1e-4)
    assert len(losses(run)) == 120
    attempts = [line["attempt"] for line in metrics(run)]
    assert attempts == sorted(attempts)
    assert set(attempts) == {1, 2}


def test_one_killed_worker_does_not_end_the_run(job: Path, undisturbed: Path) -> None:
    run = undisturbed.parent / "wounded"
    process = start("local", job, "--run-id", "wounded", "--processes", 2, *LONG)
    wait_for(run / "checkpoints" / "2" / "manifest.1.json")
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert losses(run)[:12] == pytest.approx(losses(undisturbed), rel=1e-4)
    assert json.loads((run / "result.json").read_text())["attempts"] >= 2


def test_sigterm_leaves_a_checkpoint_to_resume_from(job: Path, undisturbed: Path) -> None:
    run = undisturbed.parent / "stopped"
    options = ["local", job, "--run-id", "stopped", "--processes", 2, *LONG]
    process = start(*options)
    wait_for(run / "checkpoints" / "2" / "manifest.1.json")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 103, err
    assert "to resume it" in err
    steps_done = len(losses(run))
    assert json.loads((run / "checkpoints" / "LATEST").read_text())["step"] == steps_done < 120

    assert cli(*options).code == 0
    assert losses(run)[:12] == pytest.approx(losses(undisturbed), rel=1e-4)
    assert {line["attempt"] for line in metrics(run)[steps_done:]} == {2}


def test_sigterm_to_one_worker_stops_all_and_the_job_resumes(job: Path, undisturbed: Path) -> None:
    run = undisturbed.parent / "one-stopped"
    rare = [
        "--set",
        "train.checkpoint_interval=1000",
        "--set",
        "train.eval_interval=2",
    ]  # so only SIGTERM writes a checkpoint
    process = start("local", job, "--run-id", "one-stopped", "--processes", 2, *LONG, *rare)
    wait_for(run / "delta" / "BEST")
    os.kill(workers(process.pid)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    attempts = [line["attempt"] for line in metrics(run)]
    assert attempts == sorted(attempts)
    assert attempts[0] == 1
    assert len(losses(run)) == 120
    assert losses(run)[:12] == pytest.approx(losses(undisturbed), rel=1e-4)


def test_a_hung_worker_is_killed_and_its_log_is_kept(job: Path, undisturbed: Path) -> None:
    run = undisturbed.parent / "hanging"
    process = start("local", job, "--run-id", "hanging", "--processes", 2, *LONG, "--set", "train.stall_timeout=15")
    wait_for(run / "checkpoints" / "2" / "manifest.1.json")
    os.kill(workers(process.pid)[0], signal.SIGSTOP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "no progress for 15 s while training: ended by the watchdog" in err
    assert losses(run)[:12] == pytest.approx(losses(undisturbed), rel=1e-4)
    (log,) = run.glob("logs/*/00001.log")
    assert "attempt 1: 45 packed rows" in log.read_text()


@pytest.mark.parametrize("victim", ["local", "entrypoint", "torchrun"])
def test_no_process_outlives_its_parent(job: Path, tmp_path: Path, victim: str) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    run = job.parent / "runs" / "weather" / f"orphans-{victim}"
    process = start("local", job, "--run-id", run.name, "--processes", 2, *LONG, env={"TMPDIR": str(scratch)})
    wait_for(run / "checkpoints" / "2" / "manifest.1.json")
    (entrypoint,) = children(process.pid)
    (torchrun,) = children(entrypoint)
    first_workers = children(torchrun)
    os.kill({"local": process.pid, "entrypoint": entrypoint, "torchrun": torchrun}[victim], signal.SIGKILL)
    wait_until_gone([torchrun, *first_workers])
    if victim == "torchrun":
        wait_for(run / "attempts" / "00002.json")  # the job restarts
        process.terminate()
    else:
        wait_until_gone([entrypoint])
    process.communicate(timeout=60)
    assert not [path.name for path in scratch.iterdir()]


def test_max_steps_overrides_epochs_and_ends_with_a_checkpoint(job: Path) -> None:
    done = cli("local", job, "--run-id", "short", "--set", "train.max_steps=3", "--set", "train.checkpoint_interval=50")
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    assert len(losses(run)) == 3
    assert (run / "checkpoints" / "3").is_dir()


def test_an_invalid_record_fails_the_run_with_its_file_and_line(tmp_path: Path) -> None:
    job = make_job(tmp_path, rows=30)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"input": "no answer here"}\n')
    done = cli("local", job, "--run-id", "bad")
    assert done.code == 3
    assert done.err.count("train.jsonl:31") == 1
    assert "<ans>" in done.err
    assert "Traceback" not in done.err
    result = json.loads((tmp_path / "runs/weather/bad/result.json").read_text())
    assert (result["state"], result["exit_code"]) == ("failed", 3)
    # After the record is fixed, the same run resumes.
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:30]))
    assert cli("local", job, "--run-id", "bad", "--set", "train.max_steps=1").code == 0


def test_non_finite_weights_fail_the_run_with_a_message(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    job = make_job(tmp_path, rows=30)
    weights = next((tmp_path / "model").glob("*.safetensors"))
    state = load_file(weights)
    name = "encoder.layers.1.ffn.ffn.w_out.weight"
    state[name][0, 0] = torch.nan
    save_file(state, weights)
    done = cli("local", job, "--run-id", "nan", "--processes", 2)
    assert done.code == 3
    assert name in done.err
    assert "Traceback" not in done.err


def test_the_deadline_ends_a_run_for_good_with_a_checkpoint(job: Path) -> None:
    done = cli("local", job, "--run-id", "late", "--set", "train.deadline=0.5", "--set", "train.epochs=500")
    assert done.code == 100
    assert "deadline" in done.err


def test_without_evaluation_the_last_delta_is_the_best(job: Path) -> None:
    done = cli("local", job, "--run-id", "blind", "--set", "data.eval=null", "--set", "train.max_steps=2")
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    assert json.loads((run / "delta/BEST").read_text())["step"] == 2
    assert json.loads((run / "result.json").read_text())["scores"]["eval_loss"] is None
