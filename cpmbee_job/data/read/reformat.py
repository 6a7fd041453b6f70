"""Raw rows to examples: the formats, and the rewriting of whole files.

A format is a function from a row (a JSON object) to an example. `bee` rows are examples already; `ccpm` is the
tutorial's raw form; `module:function` names a function of the user's.
"""

import difflib
import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cpmbee_job.data.encode.examples import Example, check_example, parse_object
from cpmbee_job.errors import DataError, NotFoundError, PreflightError, RefusedError, SpecError
from cpmbee_job.store.base import Progress, no_progress

Converter = Callable[[dict[str, Any]], Any]

MAX_NAMED_ROWS = 20
"""How many bad rows a message names; the rest is counted."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CCPM_QUESTION = "这段话形容了哪句诗的意境？"
_CCPM_FORM = re.compile(r"\s*\[翻译\](.*)\[答案\]\s*", re.DOTALL)
_CCPM_OPTION = re.compile(r"\[([0-9]+)\]")


def converter(format_name: str) -> Converter:
    """The function behind the name of a format; it raises `DataError` for a row that it can't convert.

    Raises `SpecError` for a name that is none, and for a function that can't be imported.
    """
    if format_name in _FORMATS:
        return _FORMATS[format_name]
    if ":" in format_name:
        return _imported(format_name)
    close = difflib.get_close_matches(format_name, _FORMATS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_FORMATS)}, or module:function of your own"
    raise SpecError(f"no format is called '{format_name}'", hint=hint)


def ccpm_example(row: dict[str, Any]) -> Example:
    """A row of CCPM, `{"input": "[翻译]…[0]…[1]…[答案]", "target": "1"}`, as the tutorial's multiple choice."""
    text = row.get("input")
    if not isinstance(text, str):
        raise DataError(
            "input: missing, or no text", hint='a row looks like {"input": "[翻译]…[0]…[1]…[答案]", "target": "1"}'
        )
    form = _CCPM_FORM.fullmatch(text)
    if form is None:
        raise DataError("input: does not have the form [翻译]…[0]…[1]…[答案]")
    passage, *marked = _CCPM_OPTION.split(form[1])
    options = {f"<option_{number}>": option for number, option in enumerate(marked[1::2])}
    if not options or marked[0::2] != [str(number) for number in range(len(options))]:
        raise DataError("input: its options are not numbered [0], [1], … in order")
    answer = f"<option_{row.get('target')}>"
    if answer not in options:
        raise DataError(f"target: names none of the {len(options)} options")
    return {
        "input": passage,
        "options": options,
        "question": _CCPM_QUESTION,
        "<ans>": answer,
    }


def reformat(
    source: Path, target: Path, format_name: str, warnings: Counter[str], progress: Progress = no_progress
) -> dict[Path, int]:
    """Rewrite a file of JSON lines, or all in a folder, as examples into the folder `target`, names unchanged.

    Returns the number of rows by file written; `warnings` counts what was mended, `progress` hears of the bytes read.
    Files appear when all rows of all of them have been converted. Raises `DataError` that names the bad rows by file,
    line and reason, `NotFoundError`, `PreflightError` where a file can't be opened or written, and `RefusedError` where
    the output would lie among the input.
    """
    convert = converter(format_name)
    sources = input_files(source)
    base = source if source.is_dir() else source.parent
    inside = source.is_dir() and target.resolve().is_relative_to(base.resolve())
    if inside or target.resolve() == base.resolve():
        raise RefusedError(f"{target}: the input is there too", hint="name another folder for the output")
    errors = ErrorList()
    written: dict[Path, int] = {}
    temporary: list[Path] = []
    new_folders: set[Path] = set()
    try:
        for path in sources:
            final = target / path.relative_to(base)
            if final.is_dir():
                raise RefusedError(f"{final}: a folder is there", hint="name another folder for the output")
            new_folders.update(folder for folder in final.parents if not folder.exists())
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.append(final.with_name(f".{final.name}.{os.getpid()}"))
            with temporary[-1].open("w", encoding="utf-8", newline="\n") as out:
                written[final] = 0
                for example in _converted(path, convert, warnings, errors, progress):
                    out.write(json.dumps(example, ensure_ascii=False) + "\n")
                    written[final] += 1
        errors.refuse("nothing was written")
        for path, final in zip(temporary, written, strict=True):
            path.replace(final)
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        hint = "a file is where a folder should be" if blocked else None
        raise PreflightError(f"{error.filename}: {error.strerror}", hint=hint) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
        for folder in sorted(new_folders, reverse=True):  # inner ones first
            with suppress(OSError):  # something is in it, as after a good end
                folder.rmdir()
    return written


def input_files(source: Path) -> list[Path]:
    """The file itself, or all files below a folder, sorted; names that begin with `.` or `_` are left out."""
    if source.is_file():
        return [source]
    below = (path for path in source.rglob("*") if path.is_file())
    files = sorted(p for p in below if not any(part[0] in "._" for part in p.relative_to(source).parts))
    if not files:
        raise NotFoundError(f"{source}: {'no files in it' if source.is_dir() else 'no such file or folder'}")
    return files


class ErrorList:
    """What is wrong with rows: the first errors in words, all of them counted."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[DataError] = []

    def add(self, error: DataError, location: str | None = None) -> None:
        """Take an error, with the row's `location` put in front where it does not name it."""
        self.count += 1
        if len(self.named) < MAX_NAMED_ROWS:
            self.named.append(DataError(f"{location}: {error.message}", hint=error.hint) if location else error)

    def extend(self, other: "ErrorList") -> None:
        """Take those of another list."""
        self.count += other.count
        self.named = [*self.named, *other.named][:MAX_NAMED_ROWS]

    def refuse(self, consequence: str) -> None:
        """Raise a `DataError` that names them all, if there are any, and says what follows."""
        if not self.count:
            return
        words = [str(error) for error in self.named]
        if self.count > len(words):
            words.append(f"and {self.count - len(words):,} more")
        errors = "1 error" if self.count == 1 else f"{self.count:,} errors"
        raise DataError("\n".join([*words, f"{errors}; {consequence}"]))


def _converted(
    path: Path, convert: Converter, warnings: Counter[str], errors: ErrorList, progress: Progress
) -> Iterator[Example]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            progress(len(line))
            content = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
            if not content:
                continue
            try:
                yield check_example(convert(parse_object(content)), warnings)
            except DataError as error:
                errors.add(error, f"{path}:{number}")


def _imported(format_name: str) -> Converter:
    module_name, _, function_name = format_name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a module that lies beside the data, as with `python -m`
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a user's module may fail in any way
        reason = f"{type(error).__name__}: {error}"
        hint = "module:function is a name as in `from module import function`, from here or from an installed package"
        raise SpecError(f"format '{format_name}' can't be imported: {reason}", hint=hint) from error
    if not callable(function):
        raise SpecError(f"format '{format_name}': {type(function).__name__} is no function")

    def convert(row: dict[str, Any]) -> Any:
        try:
            return function(row)
        except Exception as error:  # likewise
            raise DataError(f"{format_name} failed: {type(error).__name__}: {error}") from error

    return convert


_FORMATS: dict[str, Converter] = {"bee": lambda row: row, "ccpm": ccpm_example}
