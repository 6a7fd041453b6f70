"""The formats of raw records. A format is a function from a record to an example.

`bee` records are examples already. `ccpm` is the tutorial's raw form. `module:function` names a user's function.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpmbee_job.data.encode.examples import Example
from cpmbee_job.errors import DataError, SpecError

Converter = Callable[[dict[str, Any]], Any]

_CCPM_QUESTION = "这段话形容了哪句诗的意境？"
_CCPM_FORM = re.compile(r"\s*\[翻译\](.*)\[答案\]\s*", re.DOTALL)
_CCPM_OPTION = re.compile(r"\[([0-9]+)\]")


def converter(format_name: str) -> Converter:
    """Return the function of a format. It raises `DataError` for a record that it can't convert.

    Raises `SpecError` for an unknown name, and for a function that can't be imported.
    """
    if format_name in _FORMATS:
        return _FORMATS[format_name]
    if ":" in format_name:
        return _imported(format_name)
    close = difflib.get_close_matches(format_name, _FORMATS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(_FORMATS)}, or module:function"
    raise SpecError(f"unknown format '{format_name}'", hint=hint)


def ccpm_example(record: dict[str, Any]) -> Example:
    """Convert a CCPM record, `{"input": "[翻译]…[0]…[1]…[答案]", "target": "1"}`, to the tutorial's multiple choice."""
    text = record.get("input")
    if not isinstance(text, str):
        hint = 'a record looks like {"input": "[翻译]…[0]…[1]…[答案]", "target": "1"}'
        raise DataError("input: missing or not text", hint=hint)
    form = _CCPM_FORM.fullmatch(text)
    if form is None:
        raise DataError("input: must have the form [翻译]…[0]…[1]…[答案]")
    passage, *marked = _CCPM_OPTION.split(form[1])
    options = {f"<option_{number}>": option for number, option in enumerate(marked[1::2])}
    if not options or marked[0::2] != [str(number) for number in range(len(options))]:
        raise DataError("input: options must be numbered [0], [1], … in order")
    answer = f"<option_{record.get('target')}>"
    if answer not in options:
        raise DataError(f"target: must be the number of one of the {len(options)} options")
    return {"input": passage, "options": options, "question": _CCPM_QUESTION, "<ans>": answer}


def _imported(format_name: str) -> Converter:
    module_name, _, function_name = format_name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # finds a module in the working directory, like `python -m`
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a user's module can raise anything
        reason = f"{type(error).__name__}: {error}"
        hint = "module:function stands for `from module import function`, from here or from an installed package"
        raise SpecError(f"format '{format_name}': import failed: {reason}", hint=hint) from error
    if not callable(function):
        raise SpecError(f"format '{format_name}': must be a function, not {type(function).__name__}")

    def convert(record: dict[str, Any]) -> Any:
        try:
            return function(record)
        except Exception as error:  # a user's function can raise anything
            raise DataError(f"{format_name} failed: {type(error).__name__}: {error}") from error

    return convert


_FORMATS: dict[str, Converter] = {"bee": lambda record: record, "ccpm": ccpm_example}
