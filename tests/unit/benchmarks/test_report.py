from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.measure import ROOT, Curve, Figure

PAGE = """# Speed

words before

<!-- measured: written by `python -m benchmarks --write` -->
old | figures
<!-- /measured -->

words after
"""
CURVE = Curve("step", "rows", "seconds", ((1.0, 0.5), (4.0, 2.1)))
FIGURES = [
    Figure("tokenizer", "3 M characters/s", "0.1 M characters/s", 30.0, mark=15, curve=CURVE),
    Figure("memory", "3 GB", "2 GB", 1.5, mark=1.2, bound="at most"),
    Figure("wall", "1 s", "2 s", 2.0),
]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "performance.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_only_the_measured_part_of_the_page_changes(docs):
    report.write(docs, FIGURES, "a machine")
    page = (docs / "performance.md").read_text(encoding="utf-8")
    assert page.startswith("# Speed\n\nwords before\n\n<!-- measured")
    assert page.endswith("<!-- /measured -->\n\nwords after\n")
    assert "old | figures" not in page
    assert "| tokenizer | 3 M characters/s | 0.1 M characters/s | 30 | ≥ 15 | yes |" in page
    assert "| memory | 3 GB | 2 GB | 1.5 | ≤ 1.2 | no |" in page
    assert "| wall | 1 s | 2 s | 2 |  |  |" in page


def test_equal_figures_write_equal_files(docs):
    report.write(docs, FIGURES, "a machine")
    first = {path.name: path.read_bytes() for path in docs.iterdir()}
    report.write(docs, FIGURES, "a machine")
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == first
    assert first.keys() == {"performance.md", "performance-ratios.svg", "performance-scaling.svg"}


def test_the_page_in_the_docs_has_a_section_for_measurements(docs):
    page = ROOT / "docs" / "explanation" / "performance.md"
    (docs / "performance.md").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    report.write(docs, FIGURES, "a machine")
    assert "\na machine.\n" in (docs / "performance.md").read_text(encoding="utf-8")
