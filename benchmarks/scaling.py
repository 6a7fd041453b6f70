"""Measure time by size, x1, x4, x16 (quick: x1, x4), and memory with large inputs."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import inputs
from benchmarks.measure import Curve, Figure, duration, megabytes, run_sampled, timed

_SIZES = (1, 4, 16)
_LINEAR = 1.1
_LONG_ROW = 1_500  # tokens
_CHECK_GROWTH = 20  # bytes per example that `data check` may use to find duplicates


def figures(quick: bool) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="cpmbee-benchmarks-") as folder:
        sizes = _SIZES[:2] if quick else _SIZES
        yield from _prepare_time(Path(folder), sizes, inputs.NUM_ROWS // (16 if quick else 4))
        yield _step_time(sizes, repeats=1 if quick else 2)
        if not quick:
            yield _prepare_memory(Path(folder), 50, 1000)
            yield _check_memory(Path(folder), 10_000, 60_000)


def _prepare_time(folder: Path, sizes: Sequence[int], unit: int) -> Iterator[Figure]:
    seconds = []
    for size in sizes:
        raw = _write(folder, f"ccpm-{size}", "\n".join(inputs.ccpm_lines(size * unit)) + "\n", times=1)
        seconds.append(_prepare(folder, raw, "ccpm")[0])
        raw.unlink()
    yield _linear("cpmbee-job prepare", "records of CCPM", [size * unit for size in sizes], seconds)


def _step_time(sizes: Sequence[int], repeats: int) -> Figure:
    from benchmarks.step import OurStep, ccpm  # imports torch

    case = ccpm(1)
    OurStep(case)()  # the first step of a process is slower
    seconds = [min(timed(step) for _ in range(repeats)) for step in [OurStep(case, size) for size in sizes]]
    return _linear("training step", "packed rows of 2048, batch_size 1", sizes, seconds)


def _linear(what: str, unit: str, sizes: Sequence[int], seconds: Sequence[float]) -> Figure:
    """Compare the largest size with the one before; fixed costs, such as the start, matter little in both."""
    return Figure(
        what=f"{what}, {sizes[-1]:,} {unit}: time per item",
        ours=duration(seconds[-1] / sizes[-1]),
        baseline=f"{duration(seconds[-2] / sizes[-2])} with {sizes[-2]:,}",
        ratio=(seconds[-1] / sizes[-1]) / (seconds[-2] / sizes[-2]),
        mark=_LINEAR,
        bound="at most",
        curve=Curve(what, unit, "seconds", tuple(zip(map(float, sizes), seconds, strict=True))),
    )


def _prepare_memory(folder: Path, small: int, large: int) -> Figure:
    """Records of about 1,500 tokens. A gigabyte of them is prepared in a minute or two; a gigabyte of CCPM takes an
    hour."""
    examples = [{"input": inputs.long_text(_LONG_ROW, seed), "<ans>": "好"} for seed in range(200)]
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    peaks = []
    for size in (small, large):
        raw = _write(folder, "long", lines, times=round(size * 1e6 / len(lines.encode())))
        peaks.append(_prepare(folder, raw, "bee")[1])
        raw.unlink()
    return Figure(
        what=f"cpmbee-job prepare, {large:,} MB of JSON lines: peak memory, all processes",
        ours=megabytes(peaks[1]),
        baseline=f"{megabytes(peaks[0])} for {small} MB",
        ratio=peaks[1] / peaks[0],
        mark=1.2,
        bound="at most",
    )


def _check_memory(folder: Path, small: int, large: int) -> Figure:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_bytes(inputs.vocabulary())
    peaks = []
    for num_rows in (small, large):
        raw = _write(folder, "check", "\n".join(inputs.ccpm_lines(num_rows)) + "\n", times=1)
        arguments = f"--vocab={vocabulary}", f"--input={raw}", "--format=ccpm", "--max-length=2048"
        peaks.append(run_sampled("-m", "cpmbee_job.cli", "data", "check", *arguments)[1])
    allowed = peaks[0] + _CHECK_GROWTH * (large - small)
    return Figure(
        what=f"data check, {large:,} records: peak memory",
        ours=megabytes(peaks[1]),
        baseline=f"{megabytes(peaks[0])} for {small:,} records, and {_CHECK_GROWTH} bytes for each further one",
        ratio=peaks[1] / allowed,
        mark=1.2,
        bound="at most",
    )


def _prepare(folder: Path, raw: Path, format_name: str) -> tuple[float, int]:
    job = inputs.job_file(folder, raw, format_name)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        return run_sampled("-m", "cpmbee_job.cli", "prepare", str(job), "--set", f"output={output}")


def _write(folder: Path, name: str, text: str, times: int) -> Path:
    path = folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for _ in range(times):
            out.write(text)
    return path
