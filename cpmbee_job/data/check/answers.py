"""Find answers of a dataset that are empty, always the same, or one of a few classes."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cpmbee_job.data.check.report import Answers, ConstantAnswer
from cpmbee_job.data.encode.examples import ANSWER, Example, path_text
from cpmbee_job.data.encode.tokenizer import is_special

_MOST_CLASSES = 50
_LONGEST_CLASS = 32  # characters
_MOST_PATHS = 256  # paths inside answers that are counted
_COMMON = 10  # a path is reported if at least one in this many examples has it


@dataclass(slots=True)
class _Texts:
    """The texts at one path of the answers."""

    first: str
    examples: int = 0
    varies: bool = False
    classes: Counter[str] | None = field(default_factory=Counter)
    """None if there are too many, or long ones."""

    def add(self, text: str) -> None:
        self.examples += 1
        self.varies = self.varies or text != self.first
        if self.classes is not None:
            self.classes[text] += 1
            if len(text) > _LONGEST_CLASS or len(self.classes) > _MOST_CLASSES:
                self.classes = None

    def are_classes(self) -> bool:
        """Return whether the texts are choices: special tokens, or labels that occur twice on average."""
        if not self.classes:
            return False
        return all(map(is_special, self.classes)) or 2 * len(self.classes) <= self.examples


class AnswerCounter:
    """Counts answers in bounded memory."""

    def __init__(self) -> None:
        self._examples = 0
        self._empty = 0
        self._at: dict[tuple[str, ...], _Texts] = {}

    def add(self, answer: str | Example) -> None:
        self._examples += 1
        is_empty = True
        for path, text in _texts(answer):
            is_empty = is_empty and not text
            texts = self._at.get(path)
            if texts is None:
                if len(self._at) == _MOST_PATHS:
                    continue
                texts = self._at[path] = _Texts(text)
            texts.add(text)
        self._empty += is_empty

    def report(self) -> Answers:
        common = {
            path_text((ANSWER, *path)): texts
            for path, texts in self._at.items()
            if texts.examples * _COMMON >= self._examples
        }
        return Answers(
            empty=self._empty,
            constant=tuple(
                ConstantAnswer(place=name, text=texts.first[:_LONGEST_CLASS], examples=texts.examples)
                for name, texts in common.items()
                if not texts.varies and texts.examples > 1
            ),
            classes={
                name: dict(texts.classes.most_common())
                for name, texts in common.items()
                if texts.classes and texts.varies and texts.are_classes()
            },
        )


def _texts(node: str | Example, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, str):
        yield path, node
        return
    for key, value in node.items():
        yield from _texts(value, (*path, key))
