import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from cpmbee_job.cli.data.check_report import draw
from cpmbee_job.data.check.report import CheckReport
from cpmbee_job.data.check.scan import Check, report_on
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.read.sources import open_source
from tests.unit.cli.data.test_check import write

TOO_LONG = {"q": "hello " * 40, "<ans>": "<option_1>"}


@pytest.fixture
def report(tmp_path: Path, tiny_vocab: Path) -> CheckReport:
    """Report on 40 examples with four options: one is too long, one contains control sequences."""
    examples: list[Any] = [{"q": "今天天气" * (n % 9), "<ans>": f"<option_{n % 4}>"} for n in range(38)]
    examples += [TOO_LONG, {"q": "\x1b[31mred\u202e\tx\ny", "<ans>": "<option_0>"}]
    source = open_source(str(write(tmp_path / "x.jsonl", examples)))
    one = Check(source, Tokenizer.from_file(tiny_vocab), format_name="bee", max_length=64)
    one.read()
    return report_on(one)


def drawn(report: CheckReport, **options: Any) -> str:
    file = io.StringIO()
    draw(report, Console(file=file, highlight=False, soft_wrap=True, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_lines_fit_a_terminal_of_any_width(report: CheckReport, width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn(report, force_terminal=True, width=width))
    assert max(map(cell_len, text.splitlines())) <= width


def test_without_a_terminal_lines_are_never_folded(report: CheckReport) -> None:
    lines = drawn(report, width=40).splitlines()
    assert any(line.startswith("  tokens") and " max " in line for line in lines)
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_bars_are_proportional_to_the_counts(report: CheckReport) -> None:
    bars: dict[str, str] = dict(re.findall(r"(<option_\d>) .*%  (\S+)", drawn(report)))
    assert set(report.answers.classes["<ans>"].values()) == {9, 11}
    assert {name: len(bar) for name, bar in bars.items()} == {
        name: -(-count * 20 // 11) for name, count in report.answers.classes["<ans>"].items()
    }


def test_targets_are_marked_without_colors_too(report: CheckReport) -> None:
    marked = [line for line in drawn(report).splitlines() if line.startswith("  →")]
    assert len(marked) == 3
    assert all(re.fullmatch(r"  →     <option_\d>│</s>", line) for line in marked)


def test_segments_have_colors(report: CheckReport) -> None:
    text = drawn(report, force_terminal=True, color_system="standard", width=80)
    keys, answers = re.findall(r"\x1b\[36m<ans>", text), re.findall(r"\x1b\[1;32m<option_\d>", text)
    assert len(keys) == len(answers) == 3
