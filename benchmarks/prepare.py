"""Measure the whole command that turns raw records into packed rows."""

import json
import statistics
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from benchmarks import inputs
from benchmarks.batches import collate_epochs
from benchmarks.measure import Figure, duration, paired, run

_EPOCHS = 5  # the tutorial's


def figures(quick: bool) -> Iterator[Figure]:
    num_rows = inputs.num_rows(quick)
    with tempfile.TemporaryDirectory(prefix="cpmbee-benchmarks-") as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        raw.write_text("\n".join(inputs.ccpm_lines(num_rows)) + "\n", encoding="utf-8")
        job = inputs.job_file(folder, raw, "ccpm")
        fresh = count()
        tokens: set[int] = set()
        epochs: list[float] = []

        def ours() -> None:
            output = f"output={folder / f'runs-{next(fresh)}'}"
            report = run("-m", "cpmbee_job.cli", "prepare", str(job), "--json", "--set", output)
            tokens.add(json.loads(report)["train"]["tokens"])

        def original() -> None:
            report = json.loads(run("-m", "benchmarks.original", str(raw), str(folder / "model" / "vocab.txt"), name))
            tokens.add(report["tokens"])
            epochs.append(report["epoch_seconds"])

        seconds, original_seconds = paired(ours, original, repeats=1 if quick else 2)
    assert len(tokens) == 1, f"ours and the original's way give {tokens} tokens"
    yield Figure(
        what=f"raw CCPM to packed rows, {num_rows:,} records",
        ours=f"{duration(seconds)}, cpmbee-job prepare",
        baseline=f"{duration(original_seconds)}, the original's way",
        ratio=original_seconds / seconds,
        mark=8,
    )
    dataset = inputs.prepared_ccpm(quick)
    _, collating = collate_epochs(dataset, 1)
    all_seconds = seconds + _EPOCHS * collating
    all_original_seconds = original_seconds + (_EPOCHS - 1) * statistics.median(epochs)
    yield Figure(
        what=f"the same, and the loader's work in {_EPOCHS} epochs (one is measured)",
        ours=duration(all_seconds),
        baseline=f"{duration(all_original_seconds)}, the original's way",
        ratio=all_original_seconds / all_seconds,
    )
