"""Which characters of a data set the vocabulary lacks."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.data.encode.encoder import Encoded
from cpmbee_job.data.encode.tokenizer import Tokenizer, is_special
from cpmbee_job.data.read.sources import Place

_MOST_CHARACTERS = 10_000
_MOST_SHOWN = 10


class UnknownCharacter(BaseModel):
    model_config = ConfigDict(frozen=True)

    character: str
    code_point: str = Field(description="`U+1F642`")
    count: int
    first: str = Field(description="Where it stands first, `file:line`.")


class Unknown(BaseModel):
    """Characters that begin no entry of the vocabulary; neighbours make one piece, which the model sees as `<unk>`."""

    model_config = ConfigDict(frozen=True)

    characters: int
    pieces: int
    examples: int = Field(description="Examples that have any.")
    different: int = Field(description="Different characters; 10,000 are told apart at most.")
    most_frequent: tuple[UnknownCharacter, ...]


@dataclass(slots=True)
class _Seen:
    first: Place | str
    count: int = 0


class UnknownCounter:
    """Unknown characters seen so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._unk_id = tokenizer.unk_id
        self._characters = self._pieces = self._examples = 0
        self._seen: dict[str, _Seen] = {}

    def add(self, encoded: Encoded, place: Place | str) -> None:
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
                seen = self._seen.get(character)
                if seen is None:
                    if len(self._seen) == _MOST_CHARACTERS:
                        continue
                    seen = self._seen[character] = _Seen(place)
                seen.count += times
        self._examples += has_any

    def report(self) -> Unknown:
        frequent = sorted(self._seen.items(), key=lambda item: (-item[1].count, item[0]))[:_MOST_SHOWN]
        return Unknown(
            characters=self._characters,
            pieces=self._pieces,
            examples=self._examples,
            different=len(self._seen),
            most_frequent=tuple(
                UnknownCharacter(
                    character=character,
                    code_point=f"U+{ord(character):04X}",
                    count=seen.count,
                    first=str(seen.first),
                )
                for character, seen in frequent
            ),
        )
