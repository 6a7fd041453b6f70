from pathlib import Path
from typing import Annotated

from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import argument
from cpmbee_job.errors import RefusedError, UsageError

TEMPLATE = """\
# A job for `cpmbee-job local {file}`. docs/reference/spec.md explains every field.
name: {name}

# A folder with vocab.txt, config.json and the weights (*.safetensors or pytorch_model.bin).
# Here and below: s3://bucket/folder/, file:///folder or a path relative to this file.
model: models/cpm-bee-10b/

data:
  train: data/train.jsonl
  eval: data/eval.jsonl         # optional; without it, no evaluation and no early stopping
  format: bee                   # records are dicts with "<ans>"; `ccpm` or module:function convert others

output: runs/                   # results are written to <output>/<name>/<run id>/

train:
  epochs: 5
  batch_size: 5                 # packed rows in one forward pass of one process, at most
  max_length: 2048              # tokens in a packed row
  lr: 1.0e-4
  lr_decay_style: noam          # or linear, cosine, exponential, constant
  train_iters: 100              # horizon of that schedule, in steps
  warmup_iters: 1
  eval_interval: 50
  early_stop_patience: 5        # evaluations without a lower loss; 0 disables early stopping
  checkpoint_interval: 50

# lora: {{r: 8, alpha: 16, modules: [project_q, project_v]}}
# workers: {{count: 1, gpus: 0}}                       # pods, and their GPUs, cpu, memory
# image: registry/cpmbee-job/train:0.1.0             # on a cluster, with an s3:// output; local inputs are uploaded
# cluster: {{namespace: training, queue: team-a}}
# storage: {{endpoint_url: http://localhost:8333}}   # for S3 servers other than AWS; credentials: environment variables
"""


def init(file: Annotated[Path, argument("JOB.yaml", "The file to write.")] = Path("job.yaml")) -> None:
    """Write a commented job spec to start from.

    Example: cpmbee-job init job.yaml
    """
    name = "".join(c if c.isalnum() else "-" for c in file.stem.lower()).strip("-") or "job"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(TEMPLATE.format(file=file, name=name))
    except FileExistsError as error:
        raise RefusedError(f"{file}: exists already", hint="choose another file") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    console.say(f"wrote {file}; edit it, then check it with `cpmbee-job validate {file}`")
