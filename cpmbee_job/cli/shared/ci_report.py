"""Report a command's outcome to a CI pipeline: a Markdown summary that is appended, and a JUnit XML file."""

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cpmbee_job.cli.shared import console
from cpmbee_job.errors import CpmbeeError, ExitCode, UsageError
from cpmbee_job.launch.runs.durations import duration

if TYPE_CHECKING:
    from cpmbee_job.launch.runs.status import RunStatus

ABOUT_JOB = (ExitCode.INVALID, ExitCode.JOB_FAILED, ExitCode.UNFINISHED, ExitCode.CANCELLED)
"""JUnit failures: faults of the job. All other exit codes are JUnit errors: no result was obtained."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Report:
    """Collects what is reported at the end. `title` names the run, or the spec until there is a run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.status: RunStatus | None = None
        self.error: BaseException | None = None
        self._began = time.monotonic()

    def see(self, status: "RunStatus") -> None:
        """Keep the latest status. One observed before a cancellation may arrive after it, and is ignored."""
        if self.status is None or self.status.phase != "cancelled":
            self.status, self.title = status, status.reference

    def markdown(self) -> str:
        """Heading, table and error message, for a page that other steps write to as well."""
        status = self.status
        end = "error" if status is None else status.phase if status.ended or self.error is None else "not ended"
        lines = [f"### {self.title}: {end}\n"]
        if status is not None:
            rows = [("run", f"`{status.url}`")]
            if status.step is not None:
                total = f" of {status.total_steps:,}" if status.total_steps else ""
                rows.append(("steps", f"{status.step:,}{total}"))
            if status.best is not None:
                rows.append(("best eval loss", f"{status.best.loss:.4f} at step {status.best.step:,}"))
            rows.append(("waited", duration(time.monotonic() - self._began)))
            lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
        if self.error is not None:
            message = _message(self.error)
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", message))])
            lines += [f"{fence}text", message, fence, ""]
        return "\n".join(lines) + "\n"

    def junit(self) -> bytes:
        """A JUnit report of one test case."""
        error, taken = self.error, f"{time.monotonic() - self._began:.3f}"
        about_job = error is not None and getattr(error, "exit_code", ExitCode.INTERNAL) in ABOUT_JOB
        is_error = error is not None and not about_job
        counts = {"tests": "1", "failures": f"{about_job:d}", "errors": f"{is_error:d}"}
        suites = ET.Element("testsuites", counts)
        suite = ET.SubElement(suites, "testsuite", {"name": "cpmbee-job", "time": taken, **counts})
        case = ET.SubElement(suite, "testcase", {"classname": "cpmbee-job", "name": self.title, "time": taken})
        if error is not None:
            message = _message(error)
            details = {"type": type(error).__name__, "message": message.partition("\n")[0]}
            ET.SubElement(case, "failure" if about_job else "error", details).text = message
        return bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


@contextmanager
def reported(title: str, summary: Path | None = None, junit: Path | None = None, *, as_json: bool) -> Iterator[Report]:
    """Report however the block ends: print the last status (`as_json`), and write the files that are given.

    Raises `UsageError` before the block starts if a file cannot be written.
    """
    report = Report(title)
    require_writable(junit)
    require_writable(summary)
    try:
        yield report
    except BaseException as error:
        report.error = error
        raise
    finally:
        if as_json and report.status is not None:
            console.print_json(report.status.model_dump(mode="json"))
        append(summary, report.markdown())
        if junit is not None:
            junit.write_bytes(report.junit())


def append(path: Path | None, text: str) -> None:
    """Append to the file, if one is given."""
    if path is not None:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


def require_writable(path: Path | None) -> None:
    """Raises `UsageError` if a file is given that cannot be written."""
    try:
        if path is not None:
            path.open("ab").close()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _message(error: BaseException) -> str:
    """The error's message without characters that XML cannot represent."""
    if isinstance(error, typer.Exit | KeyboardInterrupt):
        return "interrupted; the run continues"
    return _NOT_XML.sub("�", str(error) if isinstance(error, CpmbeeError) else repr(error))
