"""Measure all promises about speed and memory (`make bench`); see docs/explanation/performance.md.

`python -m benchmarks [SUBJECT ...]` prints the table, `--json` one document; `--write` records table and plots in
docs/. It takes under 10 minutes on 2 quiet cores. With BENCH_QUICK=1, inputs are smaller and repeats fewer: under 2
minutes.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module

from rich.console import Console
from rich.table import Table

from benchmarks import inputs, report
from benchmarks.measure import ROOT, Figure

SUBJECTS = """
    tokenizer prepare batches packing step checkpoints loading transfers startup scaling
""".split()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", action="store_true", help="record all figures and their plots in docs/")
    options = parser.parse_args()
    if unknown := [subject for subject in options.subjects if subject not in SUBJECTS]:
        parser.error(f"unknown subject {unknown[0]}; use one of {', '.join(SUBJECTS)}")
    quick = os.environ.get("BENCH_QUICK", "") not in ("", "0")
    if options.write and (quick or options.subjects):
        parser.error("--write requires all subjects, at full size")

    start = time.perf_counter()
    figures = list(_measured(options.subjects or SUBJECTS, quick))
    caption = f"{report.machine()}; {inputs.caption()}; {time.perf_counter() - start:,.0f} s in all"
    if options.json:
        print(json.dumps({"caption": caption, "quick": quick, "figures": [report.record(f) for f in figures]}))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(figures, caption, quick))
    if options.write:
        report.write(ROOT / "docs", figures, caption)


def _measured(subjects: tuple[str, ...] | list[str], quick: bool) -> Iterator[Figure]:
    environment = dict(os.environ)
    for subject in subjects:
        start = time.perf_counter()
        yield from import_module(f"benchmarks.{subject}").figures(quick)
        print(f"{subject}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        os.environ.clear()  # some subjects set their own object store in it
        os.environ.update(environment)


def _table(figures: list[Figure], caption: str, quick: bool) -> Table:
    table = Table(*report.COLUMNS, title="quick: small inputs" if quick else None, caption=caption)
    colors = {"yes": "green", "no": "red"}
    for figure in figures:
        cells = report.cells(figure)
        table.add_row(*cells, style=colors.get(cells[-1]) if cells[-1] == "no" else None)
    return table


if __name__ == "__main__":
    main()
