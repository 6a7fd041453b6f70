"""An example becomes the arrays that the model reads, equal to the original's in every value.

The example is a tree: a root, under it the keys, under each key its text or further keys. Every node is a segment:
`<s>`, the tokens of its text, `</s>`; the texts of the answer have no `</s>` and are what the model predicts. Between
two segments the model sees the bucket of their relation: how many levels up from one to their common ancestor, how many
down to the other.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpmbee_job.data.encode.examples import ANSWER, Example, path_text
from cpmbee_job.data.encode.tokenizer import Tokenizer, base_name, is_special
from cpmbee_job.errors import DataError

_ROOT = "<root>"


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example of N tokens in S segments, named as in the original."""

    input_ids: NDArray[np.int32]
    """(N,) ids below the size of the vocabulary."""
    input_id_subs: NDArray[np.int32]
    """(N,) which of the tokens that share the id: 3 for the fourth kind of `<mask_...>` or of unknown piece."""
    context: NDArray[np.int8]
    """(N,) 0 where the text is the answer's."""
    segment_ids: NDArray[np.int32]
    """(N,) the token's segment."""
    segment_rel: NDArray[np.uint8]
    """(S * S,) bucket of the relation of a segment (row) to another; read-only, shared by examples of one shape."""
    is_key: NDArray[np.bool_]
    """(S,) whether the segment is a key (or the root), not a text; read-only and shared likewise."""
    num_segments: int
    ext_table: dict[int, str]
    """Tokens that the vocabulary lacks, by the id that the tokenizer gave them."""
    token_id_table: dict[str, dict[int, int]]
    """For each base token the `input_id_subs` of its extended ids."""
    literals: int
    """How many `<` were taken for plain text."""


class _Tree(NamedTuple):
    """The segments in the order in which they are read, as columns."""

    texts: tuple[str, ...]
    parents: tuple[int, ...]
    is_key: tuple[bool, ...]
    is_answer: tuple[bool, ...]

    def path(self, segment: int) -> str:
        """The keys that lead to a key or a text."""
        keys = []
        key = segment if self.is_key[segment] else self.parents[segment]
        while key > 0:
            keys.append(self.texts[key])
            key = self.parents[key]
        return path_text(reversed(keys))


@dataclass(frozen=True, eq=False)
class _Shape:
    """What examples whose trees differ only in their texts have in common; read-only."""

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
    max_depth: int = 8,
    strict: bool = False,
    after: Encoded | None = None,
) -> Encoded:
    """The arrays of an example that `check_example` has passed.

    `answer_order` shuffles the keys inside a nested answer, as the original does in training; None leaves them. Levels
    beyond `max_depth` (at most 15) are not told apart. `strict`: `DataError` that names the place where the original
    fails, on a `<` that begins no token of the model. For an in-context sample, which stands `after` another example,
    the tokens that the vocabulary lacks keep the numbers that they have there.
    """
    tree = _read_tree(example if answer_order is None else shuffle_answer(example, answer_order))
    extensions = _Extensions(tokenizer, strict)
    for token in after.ext_table.values() if after is not None else ():
        extensions.add(token)
    ids: list[int] = []
    places: list[int] = []  # of the tokens that have a sub number
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
                        places.append(len(ids))
                        subs.append(sub)
                    ids.append(base_id)
        except DataError as error:
            raise DataError(f"{tree.path(segment)}: {error.message}", hint=error.hint) from error
        if not tree.is_answer[segment]:
            ids.append(tokenizer.eos_id)
        lengths.append(len(ids) - start)

    input_id_subs = np.zeros(len(ids), dtype=np.int32)
    if places:
        input_id_subs[places] = subs
    build = _cached_shape if len(lengths) <= _CACHED_SEGMENTS else _build_shape
    shape = build(tree.parents, tree.is_key, tree.is_answer, max_depth)
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
    """What shuffles the keys of a nested answer: drawn from the example itself, so that it does not depend on where
    the example stands or who prepares it. None where there is nothing to shuffle.
    """
    if isinstance(example[ANSWER], str):
        return None
    canonical = json.dumps(example, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return random.Random(hashlib.sha256(canonical.encode()).digest())


def shuffle_answer(example: Example, order: random.Random) -> Example:
    """The example with the keys of its nested answer in another order."""

    def shuffled(node: Example) -> Example:
        items = list(node.items())
        order.shuffle(items)
        return {key: shuffled(value) if isinstance(value, dict) else value for key, value in items}

    answer = example[ANSWER]
    return {**example, ANSWER: shuffled(answer)} if isinstance(answer, dict) else example


class _Extensions:
    """The tokens of an example that the vocabulary lacks, in order of appearance."""

    def __init__(self, tokenizer: Tokenizer, strict: bool) -> None:
        self._tokenizer, self._strict = tokenizer, strict
        self.known: dict[str, tuple[int, int]] = {}
        """The id that the model sees in place of each, and its sub number."""
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


# No function inside the one above: it would be in a cycle with itself, and keep every tree for the garbage collector.
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
    """The token, and its id, that the model sees in place of one that the vocabulary lacks."""
    base_id = tokenizer.token_id(base := base_name(token)) if is_special(token) else None
    if base_id is not None:
        return base, base_id
    if strict and is_special(token):
        raise DataError("there is a special token that the model does not have", hint="write '<<' for a plain '<'")
    return "<unk>", tokenizer.unk_id


def _build_shape(
    parents: tuple[int, ...], is_key: tuple[bool, ...], is_answer: tuple[bool, ...], max_depth: int
) -> _Shape:
    shape = _Shape(
        numbers=np.arange(len(parents), dtype=np.int32),
        context=np.array([not answer for answer in is_answer], dtype=np.int8),
        is_key=np.array(is_key),
        segment_rel=_relations(parents, max_depth),
    )
    for array in vars(shape).values():
        array.flags.writeable = False
    return shape


_CACHED_SEGMENTS = 64
_cached_shape = lru_cache(maxsize=1024)(_build_shape)


def _relations(parents: tuple[int, ...], max_depth: int) -> NDArray[np.uint8]:
    """Buckets of all pairs of segments of a tree, in which a parent stands before its children."""
    if max_depth > 15:
        raise ValueError("buckets of more than 15 levels do not fit into a byte")
    lines: list[tuple[int, ...]] = []  # of each segment: the way from the root to itself
    for segment, parent in enumerate(parents):
        lines.append((*(lines[parent] if parent >= 0 else ()), segment))
    depths = np.array([len(line) for line in lines], dtype=np.int16)
    num_segments = len(parents)
    shared = np.zeros((num_segments, num_segments), dtype=np.int16)
    for level in range(depths.max()):
        # Beyond its own end a line gets numbers that no other has.
        ancestors = np.array([line[level] if level < len(line) else -1 - s for s, line in enumerate(lines)])
        shared += ancestors[:, None] == ancestors[None, :]
    shared[np.diag_indices(num_segments)] = depths
    up = np.minimum(depths[:, None] - shared, max_depth - 1)
    down = np.minimum(depths[None, :] - shared, max_depth - 1)
    buckets = up * max_depth + down
    buckets += buckets > 0  # bucket 1 is for in-context samples
    relations: NDArray[np.uint8] = buckets.astype(np.uint8).reshape(-1)
    return relations
