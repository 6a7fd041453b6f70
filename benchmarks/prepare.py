"""Raw rows to packed rows: the whole command, from its start to its end."""

import json
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from benchmarks import inputs
from benchmarks.measure import Figure, duration, paired, run


def figures(quick: bool) -> Iterator[Figure]:
    num_rows = inputs.NUM_ROWS // 4 if quick else inputs.NUM_ROWS
    with tempfile.TemporaryDirectory(prefix="cpmbee-benchmarks-") as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        raw.write_text("\n".join(inputs.ccpm_lines(num_rows)) + "\n", encoding="utf-8")
        job = inputs.job_file(folder, raw, "ccpm")
        fresh = count()
        tokens: set[int] = set()

        def ours() -> None:
            output = f"output={folder / f'runs-{next(fresh)}'}"
            report = run("-m", "cpmbee_job.cli", "prepare", str(job), "--json", "--set", output)
            tokens.add(json.loads(report)["train"]["tokens"])

        def original() -> None:
            report = run("-m", "benchmarks.original", str(raw), str(folder / "model" / "vocab.txt"), name)
            tokens.add(json.loads(report)["tokens"])

        seconds, original_seconds = paired(ours, original, repeats=1 if quick else 2)
    assert len(tokens) == 1, f"ours and the original's way made {tokens} tokens"
    yield Figure(
        what=f"raw CCPM to packed rows, {num_rows:,} rows",
        ours=f"{duration(seconds)}, cpmbee-job prepare",
        baseline=f"{duration(original_seconds)}, the original's way",
        ratio=original_seconds / seconds,
        mark=8,
    )
