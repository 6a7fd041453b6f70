"""Convert whole files of raw records to files of examples."""

import json
import shutil
import tempfile
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cpmbee_job.data.encode.examples import Example, check_example, parse_object
from cpmbee_job.data.read.error_list import ErrorList
from cpmbee_job.data.read.formats import Converter, converter
from cpmbee_job.errors import DataError, NotFoundError, PreflightError, RefusedError
from cpmbee_job.store.base import Progress, no_progress


def reformat(
    source: Path, target: Path, format_name: str, warnings: Counter[str], progress: Progress = no_progress
) -> dict[Path, int]:
    """Convert a file of JSON lines, or all files of a folder, into the folder `target`; file names stay the same.

    Returns the number of records by file written. `warnings` counts automatic corrections, `progress` receives the
    bytes read. Files appear only after all records of all files are converted. Raises `DataError` naming the invalid
    records, `NotFoundError`, `PreflightError` if a file can't be read or written, and `RefusedError` for an output
    inside the input.
    """
    convert = converter(format_name)
    sources = input_files(source)
    base = source if source.is_dir() else source.parent
    inside = source.is_dir() and target.resolve().is_relative_to(base.resolve())
    if inside or target.resolve() == base.resolve():
        raise RefusedError(f"{target}: contains the input, or lies inside it", hint="choose another output folder")
    outputs = [target / path.relative_to(base) for path in sources]
    errors = ErrorList()
    written: dict[Path, int] = {}
    try:
        _require_writable(outputs)
        parent = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
        with tempfile.TemporaryDirectory(prefix=".reformat-", dir=parent) as scratch:
            for number, (path, final) in enumerate(zip(sources, outputs, strict=True)):
                written[final] = 0
                with Path(scratch, str(number)).open("w", encoding="utf-8", newline="\n") as out:
                    for example in _converted(path, convert, warnings, errors, progress):
                        out.write(json.dumps(example, ensure_ascii=False) + "\n")
                        written[final] += 1
            errors.refuse("nothing was written")
            for number, final in enumerate(outputs):
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(scratch, str(number)), final)
    except OSError as error:
        raise PreflightError(f"{error.filename}: {error.strerror}") from error
    return written


def input_files(source: Path) -> list[Path]:
    """Return the file itself, or all files below a folder, sorted, without names that start with `.` or `_`."""
    if source.is_file():
        return [source]
    below = (path for path in source.rglob("*") if path.is_file())
    files = sorted(p for p in below if not any(part[0] in "._" for part in p.relative_to(source).parts))
    if not files:
        raise NotFoundError(f"{source}: {'no files in it' if source.is_dir() else 'no such file or folder'}")
    return files


def _require_writable(outputs: list[Path]) -> None:
    for final in outputs:
        if final.is_dir():
            raise RefusedError(f"{final}: is a folder", hint="choose another output folder")
        for folder in final.parents:
            if folder.exists() and not folder.is_dir():
                raise PreflightError(f"{folder}: is not a folder", hint="a file has the name of a folder")


def _converted(
    path: Path, convert: Converter, warnings: Counter[str], errors: ErrorList, progress: Progress
) -> Iterator[Example]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            progress(len(line))
            content = (line.removeprefix(BOM_UTF8) if number == 1 else line).strip()
            if not content:
                continue
            try:
                yield check_example(convert(parse_object(content)), warnings)
            except DataError as error:
                errors.add(error, f"{path}:{number}")
