"""Draw the report of `data check` as text and bars, on a terminal of any width or in a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from cpmbee_job.cli.shared.console import printable
from cpmbee_job.data.check.report import (
    Answers,
    CheckReport,
    Duplicates,
    ExampleView,
    Lengths,
    Segment,
    SetReport,
    Unknown,
)
from cpmbee_job.data.encode.examples import ANSWER

_TITLE_WIDTH = 17
_LABEL_WIDTH = 20
_BAR_WIDTH = 40
_SHORTEST_BAR = 5
_MOST_BARS = 12
"""More counts are summed up in one line; the histogram has no more."""
_LEVELS = ("magenta", "cyan", "blue", "yellow")
"""Colors of segments by their level in the tree."""


@dataclass(frozen=True)
class TextItem:
    """One or more lines under a title."""

    title: str
    lines: Sequence[str]
    is_warning: bool = False


@dataclass(frozen=True)
class BarItem:
    """Counts under a title, each with a bar for its share."""

    title: str
    counts: Mapping[str, int]
    total: int


def draw(report: CheckReport, console: Console) -> None:
    """Print the whole report."""
    page = _Page(console)
    page.heading(report.url)
    for item in _of_set(report, with_histogram=True):
        page.item(item)
    if report.eval is not None:
        page.heading(report.eval.url)
        for item in _of_set(report.eval, with_histogram=False):
            page.item(item)
    if report.leakage is not None:
        contradicting = "evaluation questions in the training data with another answer"
        page.item(_duplicates("leakage", report.leakage, "evaluation examples in the training data", contradicting))
    if report.views:
        page.heading("examples as the model sees them")
        page.line("One segment per line, between <s> and </s>; │ separates tokens, → marks what the model predicts.")
        for view in report.views:
            page.view(view)
    page.line("")


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


def _of_set(report: SetReport, *, with_histogram: bool) -> Iterator[TextItem | BarItem]:
    yield TextItem("records", [_records(report)], report.bad_rows > 0)
    for title, lengths in (("tokens", report.tokens), ("target tokens", report.target_tokens)):
        if lengths is not None:
            yield _lengths(title, lengths)
    if with_histogram and report.histogram:
        bins = {f"{b.first:,}-{b.last:,}" if b.first < b.last else f"{b.first:,}": b.examples for b in report.histogram}
        yield BarItem("lengths", bins, report.examples)
    if report.packing is not None:
        packing = report.packing
        rows = f"{_number(packing.rows, 'packed row')} of {report.max_length:,} tokens, {packing.efficiency:.1%} full"
        yield TextItem("packing", [f"{rows}, {packing.examples / packing.rows:,.1f} examples per row"])
    if report.examples:
        yield _too_long(report)
        yield _unknown(report.unknown)
        yield from _answers(report.answers, report.examples)
        contradicting = "examples with the question of an earlier one and another answer"
        yield _duplicates("duplicates", report.duplicates, "repeated examples", contradicting)
    if report.warnings:
        yield TextItem("corrected", [f"{kind}: {count:,}" for kind, count in report.warnings.items()], is_warning=True)


def _records(report: SetReport) -> str:
    bad = f", {report.bad_rows:,} invalid" if report.bad_rows else ""
    return f"{report.rows:,}: {_number(report.examples, 'example')}{bad}"


def _usable(report: SetReport) -> str:
    if not report.rows:
        return "no records"
    number = "none" if not report.examples else "all" if not report.bad_rows else f"{report.examples:,}"
    return f"{number} of {_number(report.rows, 'record')}"


def _lengths(title: str, lengths: Lengths) -> TextItem:
    numbers = lengths.model_dump()
    total = numbers.pop("total")
    if lengths.min == lengths.max:
        return TextItem(title, [f"{total:,}; {lengths.max:,} per example"])
    return TextItem(title, [f"{total:,}; per example " + ", ".join(f"{k} {v:,}" for k, v in numbers.items())])


def _too_long(report: SetReport) -> TextItem:
    if not report.too_long:
        return TextItem("too long", [f"none has more than {report.max_length:,} tokens"])
    return TextItem(
        "too long",
        [
            f"{_number(report.too_long, 'example')} with more than {report.max_length:,} tokens",
            *(f"{one.location}: {one.tokens:,} tokens" for one in report.too_long_at),
        ],
        is_warning=True,
    )


def _unknown(unknown: Unknown) -> TextItem:
    if not unknown.characters:
        return TextItem("unknown", ["no characters"])
    examples = _number(unknown.examples, "example")
    lines = [f"{_number(unknown.characters, 'character')}, {unknown.different:,} different, in {examples}"]
    for one in unknown.most_frequent:
        shown = f"{one.character} " if one.character.isprintable() else ""
        lines.append(f"{shown}{one.code_point}: {one.count:,}, first {one.first}")
    if len(unknown.most_frequent) < unknown.different:
        lines.append(f"and {unknown.different - len(unknown.most_frequent):,} more, less frequent")
    return TextItem("unknown", lines, is_warning=True)


def _answers(answers: Answers, num_examples: int) -> Iterator[TextItem | BarItem]:
    lines = [f"{answers.empty:,} empty"] if answers.empty else []
    for one in answers.constant:
        scope = "" if one.examples == num_examples else " that have it"
        lines.append(f"{one.place} is always the same: {one.text!r} in all {one.examples:,}{scope}")
    fine = "none empty" if num_examples == 1 else "none empty, and they vary"
    yield TextItem("answers", lines or [fine], is_warning=bool(lines))
    for place, classes in answers.classes.items():
        if place != ANSWER:
            yield TextItem("classes", [f"of {place}"])
        yield BarItem("classes" if place == ANSWER else "", classes, sum(classes.values()))


def _duplicates(title: str, found: Duplicates, repeated: str, contradicting: str) -> TextItem:
    """`repeated` and `contradicting` say what is counted."""
    lines = []
    if found.repeated:
        lines.append(f"{repeated}: {found.repeated:,}")
        lines += [f"{one} equals {other}" for one, other in found.repeated_at]
    if found.contradicting:
        lines.append(f"{contradicting}: {found.contradicting:,}")
        lines += [f"{one} and {other} differ in the answer only" for one, other in found.contradicting_at]
    return TextItem(title, lines or ["none"], is_warning=bool(lines))


def _warnings(report: SetReport) -> list[str]:
    return [
        item.title
        for item in _of_set(report, with_histogram=False)
        if isinstance(item, TextItem) and item.is_warning and item.title != "records"  # invalid records are errors
    ]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class _Page:
    """Prints lines with a hanging indent: folded on a terminal, elsewhere never."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = console.width if console.is_terminal else None

    def heading(self, text: str) -> None:
        self.line("")
        self.line(text, style="bold")

    def line(self, text: str, style: str = "") -> None:
        self._print(Text(), Text(text, style))

    def item(self, item: TextItem | BarItem) -> None:
        if isinstance(item, BarItem):
            self._bars(item)
            return
        style = "yellow" if item.is_warning else ""
        for number, line in enumerate(item.lines):
            mark = "! " if item.is_warning and not number else "  "
            title = Text(f"{mark}{'' if number else item.title}".ljust(_TITLE_WIDTH), style)
            self._print(title, Text(printable(line), style))

    def view(self, view: ExampleView) -> None:
        self.line("")
        tokens = f"{_number(view.tokens, 'token')}, {view.target_tokens:,} to predict"
        self._print(Text("  "), Text(f"{view.location}: {tokens}", "bold"))
        half = (len(view.segments) + 1) // 2 if view.more_segments else len(view.segments)
        for segment in view.segments[:half]:
            self._segment(segment)
        if view.more_segments:
            self.line(f"    … {_number(view.more_segments, 'segment')} more …", "dim")
            for segment in view.segments[half:]:
                self._segment(segment)

    def _segment(self, segment: Segment) -> None:
        style = "bold green" if segment.target else _LEVELS[segment.level % len(_LEVELS)]
        text = Text()
        for number, token in enumerate(segment.tokens):
            text.append("│" if number else "", "dim")
            unknown = token.startswith("<unk:")
            text.append(_visible(token), "red" if unknown else style)
        if segment.more_tokens:
            text.append(f" … {segment.more_tokens:,} more", "dim")
        self._print(Text(("  → " if segment.target else "    ") + "  " * segment.level, style), text)

    def _bars(self, bars: BarItem) -> None:
        shown = dict(list(bars.counts.items())[:_MOST_BARS])
        labels = {label: _visible(label) or "(empty)" for label in shown}
        label_width = min(max(map(cell_len, labels.values())), _LABEL_WIDTH)
        most = max(shown.values())
        for number, (label, count) in enumerate(shown.items()):
            title = f"  {'' if number else bars.title}".ljust(_TITLE_WIDTH)
            line = (
                f"{set_cell_size(labels[label], label_width)}  {count:{len(f'{most:,}')},} {count / bars.total:6.1%}  "
            )
            room = _BAR_WIDTH if self._width is None else min(_BAR_WIDTH, self._width - len(title) - cell_len(line))
            bar = _bar(count / most, room) if room >= _SHORTEST_BAR else ""
            self._print(Text(title), Text.assemble(line, (bar, "cyan")))
        if len(shown) < len(bars.counts):
            rest = sum(bars.counts.values()) - sum(shown.values())
            self._print(Text(" " * _TITLE_WIDTH), Text(f"and {len(bars.counts) - len(shown):,} more: {rest:,}"))

    def _print(self, first: Text, text: Text) -> None:
        """Print `text` after `first`, with its continuation lines indented to the same column."""
        room = None if self._width is None else self._width - first.cell_len
        lines = [text] if room is None else text.wrap(self._console, max(room, 10), overflow="fold")
        for number, line in enumerate(lines):
            start = Text(" " * first.cell_len) if number else first
            whole = start + line
            whole.rstrip()
            self._console.print(whole)


def _visible(text: str) -> str:
    """Text of the data with all control and invisible characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bar(share: float, width: int) -> str:
    """A bar over `share` of `width` cells, drawn in eighths; at least one eighth unless the share is 0."""
    eighths = round(share * width * 8) or (1 if share else 0)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip()
