"""Count the characters of a dataset that are missing from the vocabulary."""

from collections import Counter

import numpy as np

from cpmbee_job.data.check.report import Unknown, UnknownCharacter
from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer, is_special

_MOST_CHARACTERS = 10_000
_MOST_SHOWN = 10


class UnknownCounter:
    """Counts unknown characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unk_id = tokenizer.unk_id
        self._characters = self._pieces = self._examples = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, object] = {}

    def add(self, encoded: Encoded, location: object) -> None:
        numbers = encoded.token_id_table.get("<unk>")
        if numbers is None:
            return
        occurrences = np.bincount(encoded.input_id_subs[encoded.input_ids == self._unk_id], minlength=len(numbers))
        has_any = False
        for token_id, number in numbers.items():
            piece = encoded.ext_table[token_id]
            if is_special(piece):
                continue
            has_any = True
            times = int(occurrences[number])
            self._pieces += times
            self._characters += times * len(piece)
            for character in piece:
                if len(self._first) < _MOST_CHARACTERS:
                    self._first.setdefault(character, location)
                if character in self._first:
                    self._counts[character] += times
        self._examples += has_any

    def report(self) -> Unknown:
        frequent = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_SHOWN]
        return Unknown(
            characters=self._characters,
            pieces=self._pieces,
            examples=self._examples,
            different=len(self._first),
            most_frequent=tuple(
                UnknownCharacter(
                    character=character,
                    code_point=f"U+{ord(character):04X}",
                    count=count,
                    first=str(self._first[character]),
                )
                for character, count in frequent
            ),
        )
