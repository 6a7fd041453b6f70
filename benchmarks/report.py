"""Report figures as a table, and as the measured part of docs/explanation/performance.md with its plots."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure

COLUMNS = ("what", "ours", "baseline", "ratio", "target", "reached")

_BEGIN, _END = "<!-- measured: written by `python -m benchmarks --write` -->", "<!-- /measured -->"


def cells(figure: Figure) -> tuple[str, ...]:
    sign = "≥" if figure.bound == "at least" else "≤"
    mark = "" if figure.mark is None else f"{sign} {_number(figure.mark)}"
    reached = {True: "yes", False: "no", None: ""}[figure.reached]
    return figure.what, figure.ours, figure.baseline, _number(figure.ratio), mark, reached


def record(figure: Figure) -> dict[str, Any]:
    return asdict(figure) | {"reached": figure.reached}


def machine() -> str:
    """Describe this machine."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GB, Python {platform.python_version()}"


def write(docs: Path, figures: Sequence[Figure], caption: str) -> None:
    """Replace the measured part of performance.md in the folder `docs`, and its plots."""
    page = docs / "performance.md"
    lines = [f"{caption}.", "", f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in figures]
    before, begin, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert end, f"{page} has no section for measurements"
    page.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
    _plot_ratios(figures, docs / "performance-ratios.svg")
    _plot_curves(figures, docs / "performance-scaling.svg")


def _plot_ratios(figures: Sequence[Figure], path: Path) -> None:
    """Plot the ratio of each figure to its baseline, with its target."""
    from matplotlib import pyplot

    shown = [f for f in reversed(figures) if f.mark and f.ratio]
    better = [f.ratio if f.bound == "at least" else 1 / f.ratio for f in shown]
    marks = [f.mark if f.bound == "at least" else 1 / f.mark for f in shown if f.mark]
    drawing, axes = pyplot.subplots(figsize=(9, 0.32 * len(shown) + 0.8), layout="constrained")
    axes.barh([f.what for f in shown], better, color=["tab:blue" if f.reached else "tab:red" for f in shown])
    axes.scatter(marks, range(len(shown)), marker="|", s=160, color="black", zorder=2, label="target")
    axes.set(xscale="log", xlabel="times better than the baseline")
    axes.legend(loc="lower right")
    _save(drawing, path)


def _plot_curves(figures: Sequence[Figure], path: Path) -> None:
    """Plot each scaling; the dashed line is proportional to size, through the largest point."""
    from matplotlib import pyplot

    curves = [f.curve for f in figures if f.curve is not None]
    drawing = pyplot.figure(figsize=(4.5 * len(curves), 3.4), layout="constrained")
    for number, curve in enumerate(curves, start=1):
        axes = drawing.add_subplot(1, len(curves), number)
        sizes, values = zip(*curve.points, strict=True)
        axes.plot(sizes, values, marker="o")
        axes.plot((0, sizes[-1]), (0, values[-1]), linestyle="--", color="gray", linewidth=1)
        axes.set(title=curve.title, xlabel=curve.size_label, ylabel=curve.value_label, xlim=0, ylim=0)
    _save(drawing, path)


def _save(drawing: Any, path: Path) -> None:
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "cpmbee-job"}):  # equal figures give equal files
        drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
