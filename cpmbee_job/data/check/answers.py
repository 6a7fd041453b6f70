"""What the answers of a data set are like as a whole: empty, always the same, or one of a few."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.data.encode.examples import ANSWER, Example, path_text
from cpmbee_job.data.encode.tokenizer import is_special

_MOST_CLASSES = 50
_LONGEST_CLASS = 32  # characters
_MOST_PLACES = 256  # keys inside answers that are followed
_COMMON = 10  # a place counts where one of so many examples has it


class Constant(BaseModel):
    """An answer that never varies."""

    model_config = ConfigDict(frozen=True)

    place: str = Field(description="`<ans>`, or the path of a text inside it.")
    text: str = Field(description="Its beginning.")
    examples: int


class Answers(BaseModel):
    model_config = ConfigDict(frozen=True)

    empty: int = Field(description="Examples without any text under `<ans>`.")
    constant: tuple[Constant, ...] = Field(description="Texts that are the same in all examples that have them.")
    classes: dict[str, dict[str, int]] = Field(
        description="By place in the answer: how often each answer occurs, the most frequent first; where they are "
        "special tokens (`<option_0>`) or few short labels."
    )


@dataclass(slots=True)
class _Place:
    """The texts at one place of the answers."""

    first: str
    examples: int = 0
    varies: bool = False
    classes: Counter[str] | None = field(default_factory=Counter)
    """None as soon as there are too many, or long ones."""

    def add(self, text: str) -> None:
        self.examples += 1
        self.varies = self.varies or text != self.first
        if self.classes is not None:
            self.classes[text] += 1
            if len(text) > _LONGEST_CLASS or len(self.classes) > _MOST_CLASSES:
                self.classes = None

    def are_classes(self) -> bool:
        """Whether the texts stand for choices; labels come twice each at least."""
        if not self.classes:
            return False
        return all(map(is_special, self.classes)) or 2 * len(self.classes) <= self.examples


class AnswerCounter:
    """Answers seen so far; what it holds is bounded."""

    def __init__(self) -> None:
        self._examples = 0
        self._empty = 0
        self._places: dict[tuple[str, ...], _Place] = {}

    def add(self, answer: str | Example) -> None:
        self._examples += 1
        is_empty = True
        for path, text in _texts(answer):
            is_empty = is_empty and not text
            place = self._places.get(path)
            if place is None:
                if len(self._places) == _MOST_PLACES:
                    continue
                place = self._places[path] = _Place(text)
            place.add(text)
        self._empty += is_empty

    def report(self) -> Answers:
        common = {
            path_text((ANSWER, *path)): place
            for path, place in self._places.items()
            if place.examples * _COMMON >= self._examples
        }
        return Answers(
            empty=self._empty,
            constant=tuple(
                Constant(place=name, text=place.first[:_LONGEST_CLASS], examples=place.examples)
                for name, place in common.items()
                if not place.varies and place.examples > 1
            ),
            classes={
                name: dict(place.classes.most_common())
                for name, place in common.items()
                if place.classes and place.varies and place.are_classes()
            },
        )


def _texts(node: str | Example, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, str):
        yield path, node
        return
    for key, value in node.items():
        yield from _texts(value, (*path, key))
