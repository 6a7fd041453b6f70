"""Run a whole job on this machine, from records in an S3 server to answers of the trained model: `make demo`.

The records are generated weather reports. The base model is small and has random weights; the delta must teach it to
read the weather from a report.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
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
    title(f"Upload a model and {NUM_TRAIN:,} records to the bucket `demo` of an S3 server at {endpoint_url}")
    upload(storage)
    job = FOLDER / "job.yaml"
    job.write_text(f"{JOB}storage: {{endpoint_url: {endpoint_url}}}\n", encoding="utf-8")
    options = [f"--endpoint-url={endpoint_url}", "--model=s3://demo/model/"]

    title("Evaluate the base model before training")
    cpmbee_job("evaluate", *options, "--data=s3://demo/data/eval.jsonl")

    title(f"Run the job in {job} with two processes")
    run = cpmbee_job("local", str(job)).strip()

    title("Evaluate the base model with the delta")
    cpmbee_job("evaluate", *options, f"--delta={run}", "--data=s3://demo/data/eval.jsonl")

    title("Answer new records")
    questions = FOLDER / "questions.jsonl"
    records = (record | {"<ans>": ""} for record in reports(3, seed=7))
    questions.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    cpmbee_job("predict", *options, f"--delta={run}", f"--input={questions}", "--beam-size=1", "--max-length=4")

    title(f"List the objects in {run}")
    for entry in open_store(run, storage).list():
        print(f"{entry.size:12,}  {entry.key}")

    print(f"\nThe objects stay in {FOLDER / 's3'}, and the model also in {FOLDER / 'model'}; the S3 server stops now.")
    print(f"Run `make demo` again to start it and train another run. Delete {FOLDER}/ to start from scratch.")


def upload(storage: StorageSpec) -> None:
    """Generate the data and the base model, and upload them."""
    bucket = open_store("s3://demo", storage)
    for name, records in (("train", reports(NUM_TRAIN, seed=1)), ("eval", reports(NUM_EVAL, seed=2))):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        bucket.put(f"data/{name}.jsonl", lines.encode())
    model = FOLDER / "model"
    make_model(model)
    for path in model.iterdir():
        bucket.upload(path, f"model/{path.name}")


def reports(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield weather reports as records, with the weather as the answer."""
    draw = random.Random(seed)
    for _ in range(count):
        weather = draw.choice(WEATHER)
        report = f"{draw.choice(DAYS)}{draw.choice(CITIES)}有{weather}。"
        yield {"input": report, "question": "天气怎么样？", "<ans>": weather}


def make_model(folder: Path) -> None:
    """Write a base model of two layers with random weights, the same every time."""
    vocabulary = list(dict.fromkeys([*SPECIAL, *WORDS]))
    sizes = {"dim_model": 64, "num_heads": 4, "dim_head": 16, "dim_ff": 128, "num_layers": 2}
    config = {"vocab_size": len(vocabulary), **sizes, "half": False}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = CpmBee(ModelConfig.from_dict(config))
    init_weights(model, seed=0)
    save_weights({name: p.detach() for name, p in model.named_parameters()}, folder)


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def cpmbee_job(*arguments: str) -> str:
    """Run a command as a user would; print its stdout, and return it."""
    print(f"$ cpmbee-job {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "cpmbee_job.cli", *arguments]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C also reaches the command, which handles it
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
