"""Encode an example into the arrays that the model reads, equal to the original's in every value.

An example is a tree: a root, the keys below it, and below each key its text or further keys. Every node is a segment:
`<s>`, the tokens of its text, `</s>`. The texts of the answer have no `</s>`; the model predicts them. For two segments
the model sees the bucket of their relation: the levels up from one to their common ancestor, and down to the other.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.examples import ANSWER, Example, canonical_json, path_text
from cpmbee_job.data.encode.tokenizer import Tokenizer, base_name, is_special
from cpmbee_job.errors import DataError

ARRAYS: Final[dict[str, type[np.generic]]] = {
    "input_ids": np.int32,
    "input_id_subs": np.int32,
    "context": np.int8,
    "segment_ids": np.int32,
    "segment_rel": np.uint8,
}
"""The arrays of an `Encoded` that are stored and digested, in this order."""

_ROOT = "<root>"
_MAX_DEPTH = 8  # of the original's model; deeper levels share a bucket


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example of N tokens in S segments, named as in the original."""

    input_ids: NDArray[np.int32]
    """(N,) token ids, smaller than the vocabulary size."""
    input_id_subs: NDArray[np.int32]
    """(N,) distinguishes tokens of the same id: 3 for the fourth `<mask_...>` or unknown piece."""
    context: NDArray[np.int8]
    """(N,) 1 where the token is given, 0 where it belongs to the answer."""
    segment_ids: NDArray[np.int32]
    """(N,) index of the token's segment."""
    segment_rel: NDArray[np.uint8]
    """(S * S,) relation buckets, row-major; read-only, shared by examples of the same shape."""
    is_key: NDArray[np.bool_]
    """(S,) True for keys and the root, False for texts; read-only, shared as above."""
    num_segments: int
    ext_table: dict[int, str]
    """Tokens missing from the vocabulary, by the id that the tokenizer gave them."""
    token_id_table: dict[str, dict[int, int]]
    """For each base token: the sub number of each of its extended ids."""
    literals: int
    """Number of `<` read as plain text."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays named in `ARRAYS`."""
        return tuple(getattr(self, name) for name in ARRAYS)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.size

    @property
    def num_targets(self) -> int:
        """Number of tokens that the model predicts."""
        return self.num_tokens - int(np.count_nonzero(self.context))


class _Tree(NamedTuple):
    """The segments in reading order, as columns."""

    texts: tuple[str, ...]
    parents: tuple[int, ...]
    is_key: tuple[bool, ...]
    is_answer: tuple[bool, ...]

    def path(self, segment: int) -> str:
        """Return the keys that lead to a segment, for messages."""
        keys = []
        key = segment if self.is_key[segment] else self.parents[segment]
        while key > 0:
            keys.append(self.texts[key])
            key = self.parents[key]
        return path_text(reversed(keys))


@dataclass(frozen=True, eq=False)
class _Shape:
    """Arrays shared by examples whose trees differ only in their texts; read-only."""

    numbers: NDArray[np.int32]
    """(S,) 0, 1, 2, ..."""
    context: NDArray[np.int8]
    is_key: NDArray[np.bool_]
    segment_rel: NDArray[np.uint8]


def encode_example(
    tokenizer: Tokenizer,
    example: Example,
    *,
    answer_order: random.Random | None = None,
    strict: bool = False,
    after: Encoded | None = None,
) -> Encoded:
    """Encode an example that `check_example` has validated.

    `answer_order` shuffles the keys of a nested answer, as the original does in training; None keeps their order.
    `strict` raises `DataError` naming the place where the original fails: a `<` that begins no token of the model. An
    in-context sample comes `after` another example and continues its numbering of tokens missing from the vocabulary.
    """
    tree = _read_tree(example if answer_order is None else shuffle_answer(example, answer_order))
    extensions = _Extensions(tokenizer, strict)
    for token in after.ext_table.values() if after is not None else ():
        extensions.add(token)
    ids: list[int] = []
    positions: list[int] = []  # of the tokens with a sub number
    subs: list[int] = []
    lengths: list[int] = []
    literals = 0
    for segment, text in enumerate(tree.texts):
        start = len(ids)
        ids.append(tokenizer.bos_id)
        try:
            cut = tokenizer.cut(text, strict=strict)
            literals += cut.literals
            if cut.is_known:
                ids.extend(cut.pieces)  # type: ignore[arg-type]  # all of them are ids
            else:
                for piece in cut.pieces:
                    if isinstance(piece, int):
                        ids.append(piece)
                        continue
                    base_id, sub = extensions.known.get(piece) or extensions.add(piece)
                    if sub:
                        positions.append(len(ids))
                        subs.append(sub)
                    ids.append(base_id)
        except DataError as error:
            raise DataError(f"{tree.path(segment)}: {error.message}", hint=error.hint) from error
        if not tree.is_answer[segment]:
            ids.append(tokenizer.eos_id)
        lengths.append(len(ids) - start)

    input_id_subs = np.zeros(len(ids), dtype=np.int32)
    if positions:
        input_id_subs[positions] = subs
    build = _cached_shape if len(lengths) <= _CACHED_SEGMENTS else _build_shape
    shape = build(tree.parents, tree.is_key, tree.is_answer)
    segment_ids = np.repeat(shape.numbers, lengths)
    return Encoded(
        input_ids=np.array(ids, dtype=np.int32),
        input_id_subs=input_id_subs,
        context=shape.context.take(segment_ids),
        segment_ids=segment_ids,
        segment_rel=shape.segment_rel,
        is_key=shape.is_key,
        num_segments=len(lengths),
        ext_table={tokenizer.vocab_size + number: token for number, token in enumerate(extensions.known)},
        token_id_table=extensions.token_id_table,
        literals=literals,
    )


def answer_order(example: Example) -> random.Random | None:
    """Return the generator that shuffles the keys of a nested answer, or None for a plain answer.

    It is seeded with the example itself, so the order depends neither on the example's position nor on the process.
    """
    if isinstance(example[ANSWER], str):
        return None
    return random.Random(hashlib.sha256(canonical_json(example).encode()).digest())


def shuffle_answer(example: Example, order: random.Random) -> Example:
    """Return the example with the keys of its nested answer shuffled."""

    def shuffled(node: Example) -> Example:
        items = list(node.items())
        order.shuffle(items)
        return {key: shuffled(value) if isinstance(value, dict) else value for key, value in items}

    answer = example[ANSWER]
    return {**example, ANSWER: shuffled(answer)} if isinstance(answer, dict) else example


class _Extensions:
    """The tokens of an example that are missing from the vocabulary, in order of appearance."""

    def __init__(self, tokenizer: Tokenizer, strict: bool) -> None:
        self._tokenizer, self._strict = tokenizer, strict
        self.known: dict[str, tuple[int, int]] = {}
        """For each token: the id that the model sees instead, and the sub number."""
        self.token_id_table: dict[str, dict[int, int]] = {}

    def add(self, token: str) -> tuple[int, int]:
        base, base_id = _base_token(self._tokenizer, token, self._strict)
        numbers = self.token_id_table.setdefault(base, {})
        sub = numbers[self._tokenizer.vocab_size + len(self.known)] = len(numbers)
        self.known[token] = base_id, sub
        return base_id, sub


def _read_tree(example: Example) -> _Tree:
    segments = [(_ROOT, -1, True, False)]
    _read_below(example, 0, False, segments)
    return _Tree(*zip(*segments, strict=True))


# Not nested in the function above: its closure would refer to itself and keep every tree until a garbage collection.
def _read_below(node: Example, parent: int, in_answer: bool, segments: list[tuple[str, int, bool, bool]]) -> None:
    for key, value in node.items():
        number = len(segments)
        segments.append((key, parent, True, False))
        value_in_answer = in_answer or (parent == 0 and key == ANSWER)
        if isinstance(value, dict):
            _read_below(value, number, value_in_answer, segments)
        else:
            segments.append((value, number, False, value_in_answer))


def _base_token(tokenizer: Tokenizer, token: str, strict: bool) -> tuple[str, int]:
    """Return the token, and its id, that the model sees instead of one that is missing from the vocabulary."""
    base_id = tokenizer.token_id(base := base_name(token)) if is_special(token) else None
    if base_id is not None:
        return base, base_id
    if strict and is_special(token):
        raise DataError("contains a special token that the model does not have", hint="write '<<' for a plain '<'")
    return "<unk>", tokenizer.unk_id


def _build_shape(parents: tuple[int, ...], is_key: tuple[bool, ...], is_answer: tuple[bool, ...]) -> _Shape:
    shape = _Shape(
        numbers=np.arange(len(parents), dtype=np.int32),
        context=np.array([not answer for answer in is_answer], dtype=np.int8),
        is_key=np.array(is_key),
        segment_rel=_relations(parents),
    )
    for array in vars(shape).values():
        array.flags.writeable = False
    return shape


_CACHED_SEGMENTS = 64
_cached_shape = lru_cache(maxsize=1024)(_build_shape)


def _relations(parents: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the buckets of all pairs of segments of a tree, whose parents come before their children."""
    lines: list[tuple[int, ...]] = []  # for each segment: the path from the root to itself
    for segment, parent in enumerate(parents):
        lines.append((*(lines[parent] if parent >= 0 else ()), segment))
    depths = np.array([len(line) for line in lines], dtype=np.int16)
    num_segments = len(parents)
    shared = np.zeros((num_segments, num_segments), dtype=np.int16)
    for level in range(depths.max()):
        # Pad a line beyond its end with numbers that no other line has.
        ancestors = np.array([line[level] if level < len(line) else -1 - s for s, line in enumerate(lines)])
        shared += ancestors[:, None] == ancestors[None, :]
    shared[np.diag_indices(num_segments)] = depths
    up = np.minimum(depths[:, None] - shared, _MAX_DEPTH - 1)
    down = np.minimum(depths[None, :] - shared, _MAX_DEPTH - 1)
    buckets = up * _MAX_DEPTH + down
    buckets += buckets > 0  # bucket 1 is for in-context samples
    relations: NDArray[np.uint8] = buckets.astype(np.uint8).reshape(-1)
    return relations
