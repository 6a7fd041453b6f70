"""Tokenize text by the rules of the original CPM-Bee tokenizer, and decode token ids.

Plain text is split greedily: at each character the longest vocabulary entry wins, and adjacent characters that begin no
entry become one unknown piece. An Aho-Corasick automaton with leftmost-longest matches finds the same entries. `<name>`
is a special token, `<<` an escaped `<`.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from ahocorasick_rs import AhoCorasick, MatchKind

from cpmbee_job.errors import DataError, NotFoundError

_REQUIRED = ("<unk>", "<s>", "</s>", "</n>", "</_>", "<root>", "<ans>")

_CACHED_CHARACTERS = 64
"""Texts up to this length are cached: keys, options and questions repeat."""

LITERAL_WARNING = "'<' taken as text"
"""Kind under which `<` read as plain text is counted among warnings."""


class Cut(NamedTuple):
    """A text as tokens."""

    pieces: Sequence[int | str]
    """Ids of the tokens in the vocabulary; the text of the others."""
    is_known: bool
    """Whether all pieces are ids."""
    literals: int
    """Number of `<` read as plain text."""


class Tokenizer:
    """A vocabulary and the automaton over it. Pickles as the content of its `vocab.txt`."""

    def __init__(self, vocabulary: dict[str, int], content: bytes) -> None:
        self._content = content
        self._id_of = vocabulary
        self._token_of = {token_id: token for token, token_id in vocabulary.items()}
        self._plain = [token for token in vocabulary if not is_special(token)]
        self._plain_ids = [vocabulary[token] for token in self._plain]
        self._cut_short = lru_cache(maxsize=1 << 14)(self._cut)
        self.digest = hashlib.sha256(content).hexdigest()
        self.vocab_size = len(vocabulary)
        self.unk_id = vocabulary["<unk>"]
        self.bos_id = vocabulary["<s>"]
        self.eos_id = vocabulary["</s>"]
        special = {token_id for token, token_id in vocabulary.items() if is_special(token)} - {self.unk_id}
        self.special_ids = np.array(sorted(special), dtype=np.int32)
        """Ids of the tokens written `<...>`, except the unknown token."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_bytes, (self._content,)

    @cached_property
    def _automaton(self) -> AhoCorasick:
        """Built on first use: it takes 0.2 s for 86,583 entries, and lookups of ids do not need it."""
        return AhoCorasick(self._plain, matchkind=MatchKind.LeftmostLongest)

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a `vocab.txt`. Raises `NotFoundError` and `DataError`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"{path}: {error.strerror}", hint="the vocabulary is vocab.txt in the model's folder"
            ) from error
        return cls.from_bytes(data, source=str(path))

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "vocab.txt") -> Self:
        """Parse the content of a `vocab.txt`. Raises `DataError` naming `source`.

        Each non-empty line is a token; its id is its index among them. `</n>` and `</_>` stand for newline and space.
        """
        try:
            lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read().split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        vocabulary: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            if line in vocabulary:  # the ids after it would not be the model's
                raise DataError(f"{source}:{number}: {line!r} is repeated", hint="copy the model's file again")
            if line:
                vocabulary[line] = len(vocabulary)
        missing = [token for token in _REQUIRED if token not in vocabulary]
        if missing:
            raise DataError(f"{source}: not a CPM-Bee vocabulary: missing {', '.join(missing)}")
        vocabulary["\n"] = vocabulary.pop("</n>")
        vocabulary[" "] = vocabulary.pop("</_>")
        return cls(vocabulary, data)

    def token_id(self, token: str) -> int | None:
        """Return the id of a vocabulary entry, or None."""
        return self._id_of.get(token)

    def encode(
        self, text: str, ext_table: Mapping[int, str] | None = None, *, strict: bool = False
    ) -> tuple[list[int], dict[int, str]]:
        """Return the token ids of `text`, and `ext_table` extended by the tokens missing from the vocabulary.

        Those (numbered special tokens, unknown pieces) get ids from `vocab_size` on, in order of appearance. A `<` that
        begins no token of the model is plain text. `strict` applies the original's rule: `DataError` if such a token
        has no end, else an extended id for it.
        """
        table = dict(ext_table or {})
        extensions = {token: token_id for token_id, token in table.items()}
        num_known = len(extensions)
        cut = self.cut(text, strict=strict)
        if cut.is_known:
            return list(cut.pieces), table  # type: ignore[arg-type]  # all of them are ids
        ids = [
            piece if isinstance(piece, int) else extensions.setdefault(piece, len(extensions) + self.vocab_size)
            for piece in cut.pieces
        ]
        table.update((token_id, token) for token, token_id in islice(extensions.items(), num_known, None))
        return ids, table

    def cut(self, text: str, *, strict: bool = False) -> Cut:
        """Split a text into tokens, without numbering those missing from the vocabulary."""
        return self._cut_short(text, strict) if len(text) <= _CACHED_CHARACTERS else self._cut(text, strict)

    def decode(self, ids: Iterable[int], ext_table: Mapping[int, str] | None = None) -> str:
        """Return the text of token ids, with a plain `<` escaped as `<<`. Skips negative ids.

        Raises `DataError` for an id that is neither in the vocabulary nor in `ext_table`.
        """
        table = ext_table or {}
        pieces = []
        for token_id in ids:
            if token_id in table:
                pieces.append(table[token_id])
            elif token_id >= 0:
                token = self._token_of.get(token_id)
                if token is None:
                    raise DataError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} entries")
                pieces.append(token if is_special(token) else token.replace("<", "<<"))
        return "".join(pieces)

    def _cut(self, text: str, strict: bool) -> Cut:
        pieces: list[int | str] = []
        is_known = True
        parts, literals = self._split(text, strict) if "<" in text else ([text], 0)
        for index, part in enumerate(parts):
            if index % 2:
                token_id = self._id_of.get(part)
                is_known &= token_id is not None
                pieces.append(part if token_id is None else token_id)
                continue
            matches = self._automaton.find_matches_as_indexes(part)
            patterns, starts, ends = zip(*matches, strict=True) if matches else ((), (), ())
            if sum(ends) - sum(starts) == len(part):
                pieces += map(self._plain_ids.__getitem__, patterns)
                continue
            is_known = False
            position = 0
            for pattern, start, end in matches:
                if start > position:
                    pieces.append(part[position:start])
                pieces.append(self._plain_ids[pattern])
                position = end
            if position < len(part):
                pieces.append(part[position:])
        return Cut(pieces, is_known, literals)

    def _split(self, text: str, strict: bool) -> tuple[list[str], int]:
        """Split into alternating plain text and special tokens, starting and ending with plain text.

        Also returns the number of `<` read as plain text.
        """
        literals = 0
        parts: list[str] = []
        plain: list[str] = []
        position = 0
        while (begin := text.find("<", position)) >= 0:
            plain.append(text[position:begin])
            if text.startswith("<", begin + 1):
                plain.append("<")
                position = begin + 2
                continue
            # The original's rule: the character after `<` always belongs to the name, even a `>`.
            following = text.find("<", begin + 2)
            end = text.find(">", begin + 2, following if following >= 0 else len(text)) + 1
            token = text[begin:end]
            if strict and not end:
                raise DataError(
                    f"the '<' at character {begin + 1} begins a special token without a closing '>'",
                    hint="write '<<' for a plain '<'",
                )
            if strict or (end and (token in self._id_of or base_name(token) in self._id_of)):
                parts += ["".join(plain), token]
                plain = []
                position = end
            else:
                literals += 1
                plain.append("<")
                position = begin + 1
        plain.append(text[position:])
        parts.append("".join(plain))
        return parts, literals


def is_special(token: str) -> bool:
    """Return whether a token is written `<...>`, which plain text never matches."""
    return token.startswith("<") and token.endswith(">")


def base_name(token: str) -> str:
    """Return the special token that the model sees instead of a numbered one: `<mask>` for `<mask_3>`."""
    return f"<{token[1:-1].split('_', maxsplit=1)[0]}>"
