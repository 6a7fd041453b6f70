"""Steps of the attempts of a run, as written by `recording/sitecustomize.py`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resumption:
    """The resumption of a run by an attempt, at its first step."""

    after: int
    """Steps that it did not do again."""
    lost: int
    """Steps that had been done and were done again."""


class Record:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.step = 0
        """The highest that any attempt has done."""
        self.executed = 0
        """Steps, those that were done again too."""
        self.evaluations = 0
        """Begun."""
        self._pids: list[int] = []
        self._offset = 0

    @property
    def attempts(self) -> int:
        """Those that have done a step."""
        return len(self._pids)

    def pace(self, seconds: float | None) -> None:
        """How long a step lasts at least from now on."""
        place = self.path.with_name(f"{self.path.name}.pace")
        if seconds is None:
            place.unlink(missing_ok=True)
        else:
            place.write_text(str(seconds))

    def read(self) -> list[Resumption]:
        """Bring it up to date. What an attempt does after a newer one has begun does not count."""
        with self.path.open() as file:
            file.seek(self._offset)
            text = file.read()
        lines = text[: text.rfind("\n") + 1]
        self._offset += len(lines)
        found = []
        for line in lines.splitlines():
            pid, what = line.split()
            if what == "evaluating":
                self.evaluations += 1
                continue
            step = int(what)
            self.executed += 1
            if int(pid) not in self._pids:
                if self._pids:
                    found.append(Resumption(step - 1, self.step - (step - 1)))
                self._pids.append(int(pid))
            if int(pid) == self._pids[-1]:
                self.step = max(self.step, step)
        return found
