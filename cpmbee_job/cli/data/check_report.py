"""Draw the report of `data check` as text and bars, on a terminal of any width or in a file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cpmbee_job.cli.shared.console import printable
from cpmbee_job.data.check.report import CheckReport, Duplicates, ExampleView, SetReport

_TITLE_WIDTH = 17
_LABEL_WIDTH = 20
_BAR_WIDTH = 20
_MOST_BARS = 12
"""More counts are summed up in one line; the histogram has no more."""
_LEVELS = ("magenta", "cyan", "blue", "yellow")
"""Colors of segments by their level in the tree."""


class _Item(NamedTuple):
    title: str
    lines: Sequence[str]
    is_warning: bool = False


def draw(report: CheckReport, console: Console) -> None:
    """Print the whole report."""
    for one in (report, report.eval):
        if one is not None:
            _heading(console, one.url)
            for item in _items(one):
                _draw_item(console, item)
    if report.leakage is not None:
        contradicting = "evaluation questions in the training data with another answer"
        repeated = "evaluation examples in the training data"
        _draw_item(console, _duplicates("leakage", report.leakage, repeated, contradicting))
    if report.views:
        _heading(console, "examples as the model sees them")
        legend = "One segment per line, between <s> and </s>; │ separates tokens, → marks what the model predicts."
        _print(console, Text(), Text(legend))
        for view in report.views:
            _draw_view(console, view)
    console.print()


def summarize(report: CheckReport) -> Text:
    """The report in one line."""
    line = f"summary: {_usable(report)}"
    warnings = _warnings(report)
    num_errors = report.num_errors
    if report.eval is not None and report.leakage is not None:
        line += f" and {_usable(report.eval)} for evaluation"
        warnings += [f"{title} (eval)" for title in _warnings(report.eval)]
        warnings += ["leakage"] * report.leakage.any
        num_errors += report.eval.num_errors
    line += f" are valid; {_number(num_errors, 'error')}, {_number(len(warnings), 'warning')}"
    if warnings:
        line += f": {', '.join(warnings)}"
    return Text(line, "red" if num_errors else "yellow" if warnings else "green")


def _usable(report: SetReport) -> str:
    if not report.rows:
        return "no records"
    number = "none" if not report.examples else "all" if not report.bad_rows else f"{report.examples:,}"
    return f"{number} of {_number(report.rows, 'record')}"


def _warnings(report: SetReport) -> list[str]:
    """The titles of the warnings. Invalid records are errors."""
    return [item.title for item in _items(report) if item.is_warning and item.title != "records"]


def _items(report: SetReport) -> Iterator[_Item]:
    bad = f", {report.bad_rows:,} invalid" if report.bad_rows else ""
    yield _Item("records", [f"{report.rows:,}: {_number(report.examples, 'example')}{bad}"], report.bad_rows > 0)
    for title, lengths in (("tokens", report.tokens), ("target tokens", report.target_tokens)):
        if lengths is not None:
            numbers = lengths.model_dump(exclude={"total"})
            per_example = ", ".join(f"{name} {number:,}" for name, number in numbers.items())
            yield _Item(title, [f"{lengths.total:,}; per example {per_example}"])
    if report.histogram:
        bins = {f"{b.first:,}-{b.last:,}" if b.first < b.last else f"{b.first:,}": b.examples for b in report.histogram}
        yield _Item("lengths", _bars(bins))
    if report.packing is not None:
        packing = report.packing
        rows = f"{_number(packing.rows, 'packed row')} of {report.max_length:,} tokens, {packing.efficiency:.1%} full"
        yield _Item("packing", [f"{rows}, {packing.examples / packing.rows:,.1f} examples per row"])
    if report.examples:
        yield _too_long(report)
        yield _unknown(report)
        yield from _answers(report)
        contradicting = "examples with the question of an earlier one and another answer"
        yield _duplicates("duplicates", report.duplicates, "repeated examples", contradicting)
    if report.warnings:
        yield _Item("corrected", [f"{kind}: {count:,}" for kind, count in report.warnings.items()], is_warning=True)


def _too_long(report: SetReport) -> _Item:
    if not report.too_long:
        return _Item("too long", [f"none has more than {report.max_length:,} tokens"])
    lines = [f"{_number(report.too_long, 'example')} with more than {report.max_length:,} tokens"]
    lines += [f"{one.location}: {one.tokens:,} tokens" for one in report.too_long_at]
    return _Item("too long", lines, is_warning=True)


def _unknown(report: SetReport) -> _Item:
    unknown = report.unknown
    if not unknown.characters:
        return _Item("unknown", ["no characters"])
    examples = _number(unknown.examples, "example")
    lines = [f"{_number(unknown.characters, 'character')}, {unknown.different:,} different, in {examples}"]
    for one in unknown.most_frequent:
        shown = f"{one.character} " if one.character.isprintable() else ""
        lines.append(f"{shown}{one.code_point}: {one.count:,}, first {one.first}")
    if len(unknown.most_frequent) < unknown.different:
        lines.append(f"and {unknown.different - len(unknown.most_frequent):,} more, less frequent")
    return _Item("unknown", lines, is_warning=True)


def _answers(report: SetReport) -> Iterator[_Item]:
    answers = report.answers
    lines = [f"{answers.empty:,} empty"] if answers.empty else []
    for one in answers.constant:
        scope = "" if one.examples == report.examples else " that have it"
        lines.append(f"{one.place} is always the same: {one.text!r} in all {one.examples:,}{scope}")
    fine = "none empty" if report.examples == 1 else "none empty, and they vary"
    yield _Item("answers", lines or [fine], is_warning=bool(lines))
    for place, classes in answers.classes.items():
        yield _Item("classes", [f"of {place}", *_bars(classes)])


def _duplicates(title: str, found: Duplicates, repeated: str, contradicting: str) -> _Item:
    """`repeated` and `contradicting` say what is counted."""
    lines = []
    if found.repeated:
        lines.append(f"{repeated}: {found.repeated:,}")
        lines += [f"{one} equals {other}" for one, other in found.repeated_at]
    if found.contradicting:
        lines.append(f"{contradicting}: {found.contradicting:,}")
        lines += [f"{one} and {other} differ in the answer only" for one, other in found.contradicting_at]
    return _Item(title, lines or ["none"], is_warning=bool(lines))


def _bars(counts: Mapping[str, int]) -> list[str]:
    """A line for each count, with its share and a bar in proportion to the largest."""
    total, most = sum(counts.values()), max(counts.values())
    lines = []
    for label, count in list(counts.items())[:_MOST_BARS]:
        shown = set_cell_size(_visible(label) or "(empty)", _LABEL_WIDTH)
        bar = "█" * math.ceil(count / most * _BAR_WIDTH)
        lines.append(f"{shown}  {count:{len(f'{most:,}')},} {count / total:6.1%}  {bar}")
    if len(lines) < len(counts):
        lines.append(f"and {len(counts) - len(lines):,} more: {sum(list(counts.values())[_MOST_BARS:]):,}")
    return lines


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _heading(console: Console, text: str) -> None:
    console.print()
    _print(console, Text(), Text(text, "bold"))


def _draw_item(console: Console, item: _Item) -> None:
    style = "yellow" if item.is_warning else ""
    for number, line in enumerate(item.lines):
        title = "" if number else f"{'!' if item.is_warning else ' '} {item.title}"
        _print(console, Text(title.ljust(_TITLE_WIDTH), style), Text(printable(line), style))


def _draw_view(console: Console, view: ExampleView) -> None:
    console.print()
    counts = f"{_number(view.tokens, 'token')}, {view.target_tokens:,} to predict"
    _print(console, Text("  "), Text(f"{view.location}: {counts}", "bold"))
    for number, segment in enumerate(view.segments):
        if view.more_segments and number == (len(view.segments) + 1) // 2:
            _print(console, Text("    "), Text(f"… {_number(view.more_segments, 'segment')} more …", "dim"))
        style = "bold green" if segment.target else _LEVELS[segment.level % len(_LEVELS)]
        tokens = [Text(_visible(token), "red" if token.startswith("<unk:") else style) for token in segment.tokens]
        text = Text.assemble(("│", "dim")).join(tokens)
        if segment.more_tokens:
            text.append(f" … {segment.more_tokens:,} more", "dim")
        _print(console, Text(("  → " if segment.target else "    ") + "  " * segment.level, style), text)


def _print(console: Console, first: Text, text: Text) -> None:
    """Print `text` after `first`: on a terminal folded and indented to the same column, elsewhere in one line."""
    if console.is_terminal:
        row = Table.grid(Column(no_wrap=True), Column(overflow="fold"))
        row.add_row(first, text)
        console.print(row, soft_wrap=False)
    else:
        line = first + text
        line.rstrip()
        console.print(line)


def _visible(text: str) -> str:
    """Text of the data with all control and invisible characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
