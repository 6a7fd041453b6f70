"""`make demo`: a whole job on this machine, from raw rows in an S3 server to answers of the trained model.

The data are weather reports of our own, the base a small model with random weights: it knows nothing, and the delta
has to teach it to read the weather from a report.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cpmbee_job.errors import CpmbeeError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.weights.saving import save_weights
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import embedded_s3
from cpmbee_job.store.urls import open_store

FOLDER = Path(".demo")
SPECIAL = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
CITIES = ["北京", "上海", "广州", "成都", "西安", "London", "Paris", "Rome"]
DAYS = ["今天", "明天", "后天"]
WEATHER = ["晴", "雨", "雪", "风"]
WORDS = ["input", "question", "天气", "怎么样", "有", "，", "。", "？", *CITIES, *DAYS, *WEATHER]
NUM_TRAIN, NUM_EVAL = 3000, 200

JOB = """\
name: demo
model: s3://demo/model/
data: {train: s3://demo/data/train.jsonl, eval: s3://demo/data/eval.jsonl}
output: s3://demo/runs/
train:
  epochs: 6
  batch_size: 4
  max_length: 512
  lr: 3.0e-3
  lr_decay_style: cosine
  train_iters: 120
  warmup_iters: 10
  eval_interval: 20
  checkpoint_interval: 20
workers: {count: 2}
"""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    try:
        os.environ |= {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
        keys = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
        with embedded_s3(FOLDER / "s3", **keys, buckets=["demo"]) as server:
            demonstrate(server.endpoint_url)
    except CpmbeeError as error:
        sys.exit(f"error: {error}")


def demonstrate(endpoint_url: str) -> None:
    storage = StorageSpec(endpoint_url=endpoint_url)
    with chapter(f"An S3 server is at {endpoint_url}; a model and {NUM_TRAIN:,} rows go into its bucket `demo`"):
        upload(storage)
        job = FOLDER / "job.yaml"
        job.write_text(f"{JOB}storage: {{endpoint_url: {endpoint_url}}}\n", encoding="utf-8")

    command_line = [f"--endpoint-url={endpoint_url}", "--model=s3://demo/model/"]
    with chapter("What the base knows"):
        cpmbee_job("evaluate", *command_line, "--data=s3://demo/data/eval.jsonl")

    with chapter(f"The job in {job}, with two processes"):
        run = cpmbee_job("local", str(job)).strip()

    with chapter("What it knows with the delta"):
        cpmbee_job("evaluate", *command_line, f"--delta={run}", "--data=s3://demo/data/eval.jsonl")

    with chapter("Its answers to new reports"):
        questions = FOLDER / "questions.jsonl"
        questions.write_text(
            "".join(json.dumps(r | {"<ans>": ""}, ensure_ascii=False) + "\n" for r in reports(3, seed=7))
        )
        cpmbee_job(
            "predict", *command_line, f"--delta={run}", f"--input={questions}", "--beam-size=1", "--max-length=4"
        )

    with chapter(f"What is left in {run}"):
        for entry in open_store(run, storage).list():
            print(f"{entry.size:12,}  {entry.key}")

    print(
        f"\nThe S3 server, which stops now, keeps it all in {FOLDER / 's3'}; the model is also in {FOLDER / 'model'}."
    )
    print(f"`make demo` starts that server again and trains another run; delete {FOLDER}/ to start from nothing.")


def upload(storage: StorageSpec) -> None:
    """Make the data and the base, and put them where the job expects them."""
    bucket = open_store("s3://demo", storage)
    for name, rows in (("train", reports(NUM_TRAIN, seed=1)), ("eval", reports(NUM_EVAL, seed=2))):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        bucket.put(f"data/{name}.jsonl", lines.encode())
    model = FOLDER / "model"
    make_model(model)
    for path in model.iterdir():
        bucket.upload(path, f"model/{path.name}")


def reports(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Weather reports, and what they say."""
    draw = random.Random(seed)
    for _ in range(count):
        weather = draw.choice(WEATHER)
        report = f"{draw.choice(DAYS)}{draw.choice(CITIES)}有{weather}。"
        yield {"input": report, "question": "天气怎么样？", "<ans>": weather}


def make_model(folder: Path) -> None:
    """A base of two layers with random weights, the same every time."""
    vocabulary = list(dict.fromkeys([*SPECIAL, *WORDS]))
    sizes = {"dim_model": 64, "num_heads": 4, "dim_head": 16, "dim_ff": 128, "num_layers": 2}
    config = {"vocab_size": len(vocabulary), **sizes, "half": False}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = CpmBee(ModelConfig.from_dict(config))
    init_weights(model, seed=0)
    save_weights({name: p.detach() for name, p in model.named_parameters()}, folder)


@contextmanager
def chapter(title: str) -> Iterator[None]:
    print(f"\n=== {title}", flush=True)
    yield


def cpmbee_job(*arguments: str) -> str:
    """Run the command line as a user would; what it prints is shown, and returned."""
    print(f"$ cpmbee-job {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "cpmbee_job.cli", *arguments]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the command too, which ends in its own way
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
