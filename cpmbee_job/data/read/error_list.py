"""Collect errors of records and report them together."""

from cpmbee_job.errors import DataError

MAX_NAMED_ERRORS = 20
"""Number of errors that a message names; the others are counted."""


class ErrorList:
    """Errors of records: the first ones are kept, all are counted."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[DataError] = []

    def add(self, error: DataError, location: object = None) -> None:
        """Add an error; `location` is prepended to its message."""
        self.count += 1
        if len(self.named) < MAX_NAMED_ERRORS:
            self.named.append(DataError(f"{location}: {error.message}", hint=error.hint) if location else error)

    def extend(self, other: "ErrorList") -> None:
        """Add the errors of another list."""
        self.count += other.count
        self.named = [*self.named, *other.named][:MAX_NAMED_ERRORS]

    def refuse(self, consequence: str) -> None:
        """Raise a `DataError` with all kept errors and the consequence, if there are any."""
        if not self.count:
            return
        lines = [str(error) for error in self.named]
        if self.count > len(lines):
            lines.append(f"and {self.count - len(lines):,} more")
        errors = "1 error" if self.count == 1 else f"{self.count:,} errors"
        raise DataError("\n".join([*lines, f"{errors}; {consequence}"]))
