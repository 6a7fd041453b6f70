"""Check that commands which only read, or only write a manifest, start without the heavy packages."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import inputs
from benchmarks.measure import ROOT, Figure, duration, paired, run

_HEAVY = ("torch", "boto3", "kubernetes", "pyarrow")


def figures(quick: bool) -> Iterator[Figure]:
    repeats = 1 if quick else 2
    with tempfile.TemporaryDirectory(prefix="cpmbee-benchmarks-") as folder:
        job = str(inputs.job_file(Path(folder), Path(folder) / "raw.jsonl", "ccpm"))
        places = {"model": "s3://models/a/", "data.train": "s3://data/train.jsonl", "output": "s3://runs/"}
        overrides = [f"--set={key}={value}" for key, value in (places | {"image": "registry.example/train:1"}).items()]
        for name, arguments in (("--help", ["--help"]), ("render", ["render", job, *overrides])):
            command = ("-m", "cpmbee_job.cli", *arguments)
            loaded = _loaded(*command)
            seconds, heavy_seconds = paired(
                partial(run, *command), partial(run, "-c", f"import {', '.join(_HEAVY)}"), repeats
            )
            yield Figure(
                what=f"cpmbee-job {name}: heavy packages imported",
                ours=" and ".join(loaded) or "none",
                baseline=f"of {', '.join(_HEAVY)}",
                ratio=len(loaded),
                mark=0,
                bound="at most",
            )
            yield Figure(
                what=f"cpmbee-job {name}: wall",
                ours=duration(seconds),
                baseline=f"{duration(heavy_seconds)}, importing them",
                ratio=heavy_seconds / seconds,
            )


def _loaded(*command: str) -> list[str]:
    """Return the heavy packages that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [name for name in _HEAVY if re.search(rf"\|\s*{name}$", done.stderr, re.MULTILINE)]
