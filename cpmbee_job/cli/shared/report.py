"""What a verb leaves for the page of a pipeline's job: Markdown that is appended, JUnit's XML."""

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.errors import CpmbeeError, ExitCode, UsageError
from cpmbee_job.launch.runs.durations import duration

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.status import RunStatus

SummaryFile = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        metavar="FILE",
        help="Append a summary in Markdown to this file, like $GITHUB_STEP_SUMMARY.",
        show_default=False,
    ),
]
JUnitFile = Annotated[
    Path | None,
    typer.Option(
        "--junit", metavar="FILE", help="Write the end as a test report (JUnit's XML) to this file.", show_default=False
    ),
]
ABOUT_JOB = (ExitCode.INVALID, ExitCode.JOB_FAILED, ExitCode.UNFINISHED, ExitCode.CANCELLED)
"""A failed test case in JUnit's terms; all other exit codes are errors of the environment."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Report:
    """What becomes of a run, to be told in the end. `title` names it before there is a run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.status: RunStatus | None = None
        self.error: BaseException | None = None
        self._began = time.monotonic()

    def see(self, status: "RunStatus") -> None:
        """A look at the run; one that has begun before the run was cancelled may end after it, and is no news then."""
        if self.status is None or self.status.phase != "cancelled":
            self.status = status

    def markdown(self) -> str:
        """For a page that others write to as well: a heading, a table, and what went wrong as it was said."""
        status, lines = self.status, []
        name = self.title if status is None else status.reference
        end = "error" if status is None else status.phase if status.ended or self.error is None else "not ended"
        lines.append(f"### {name}: {end}\n")
        if status is not None:
            rows = [("run", f"`{status.url}`")]
            if status.step is not None:
                rows.append(
                    ("steps", f"{status.step:,}" + (f" of {status.total_steps:,}" if status.total_steps else ""))
                )
            if status.best is not None:
                rows.append(("best eval loss", f"{status.best.loss:.4f} at step {status.best.step:,}"))
            rows.append(("waited", duration(time.monotonic() - self._began)))
            lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
        if self.error is not None:
            words = _words(self.error)
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", words))])
            lines += [f"{fence}text", words, fence, ""]
        return "\n".join(lines) + "\n"

    def junit(self) -> bytes:
        """One test case. What is wrong with the job is a failure, what keeps us from knowing is an error."""
        error, taken = self.error, f"{time.monotonic() - self._began:.3f}"
        about_job = error is not None and getattr(error, "exit_code", ExitCode.INTERNAL) in ABOUT_JOB
        counts = {
            "tests": "1",
            "failures": str(int(about_job)),
            "errors": str(int(error is not None and not about_job)),
        }
        suites = ET.Element("testsuites", counts)
        suite = ET.SubElement(suites, "testsuite", {"name": "cpmbee-job", "time": taken, **counts})
        name = self.title if self.status is None else self.status.reference
        case = ET.SubElement(suite, "testcase", {"classname": "cpmbee-job", "name": name, "time": taken})
        if error is not None:
            words = _words(error)
            details = {"type": type(error).__name__, "message": words.partition("\n")[0]}
            ET.SubElement(case, "failure" if about_job else "error", details).text = words
        return bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


@contextmanager
def reported(title: str, summary: Path | None = None, junit: Path | None = None, *, as_json: bool) -> Iterator[Report]:
    """However the block ends: prints what was seen last of the run (`as_json`), and writes both files, as far as they
    are asked for. Raises `UsageError` before it begins where one can't be written."""
    report = Report(title)
    _require_writable(junit)
    with appended(summary) as write:
        try:
            yield report
        except BaseException as error:
            report.error = error
            raise
        finally:
            if as_json and report.status is not None:
                console.print_json(report.status.model_dump(mode="json"))
            write(report.markdown())
            if junit is not None:
                junit.write_bytes(report.junit())


@contextmanager
def appended(path: Path | None) -> Iterator[Callable[[str], object]]:
    """What to call with text for the end of the file; nothing is written where there is none."""
    if path is None:
        yield lambda _text: None
        return
    _require_writable(path)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        yield file.write


def _require_writable(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("ab").close()
    except OSError as error:
        raise UsageError(f"{path}: can't be written: {error.strerror}") from error


def _words(error: BaseException) -> str:
    """Without what XML can't have and a page must not."""
    if isinstance(error, typer.Exit | KeyboardInterrupt):
        return "interrupted; the run goes on"
    return _NOT_XML.sub("�", str(error) if isinstance(error, CpmbeeError) else repr(error))
