"""Locations of records in the input, for messages: `file:line`."""

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


class Origin:
    """Where consecutive records come from. `count_before` counts the records before the first, when it is needed."""

    def __init__(self, prefix: str, count_before: Callable[[], int] = lambda: 0) -> None:
        self.prefix, self._count_before = prefix, count_before

    @cached_property
    def before(self) -> int:
        return self._count_before()


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a record: its number in its origin."""

    origin: Origin
    number: int

    def __str__(self) -> str:
        return f"{self.origin.prefix}{self.origin.before + self.number}"


class Locations:
    """The locations of all records of a dataset, in 4 bytes each."""

    def __init__(self) -> None:
        self._origins: list[Origin] = []
        self._starts: list[int] = []
        self._numbers = array("I")

    def append(self, location: Location) -> None:
        if not self._origins or self._origins[-1] is not location.origin:
            self._origins.append(location.origin)
            self._starts.append(len(self._numbers))
        self._numbers.append(location.number)

    def __getitem__(self, index: int) -> Location:
        return Location(self._origins[bisect_right(self._starts, index) - 1], self._numbers[index])
