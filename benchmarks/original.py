"""The baseline for data: raw records to padded batches in the original's way, in a plain implementation of our own.

`python -m benchmarks.original RAW.jsonl VOCAB.txt FOLDER` does what the original's commands do until one rank has
processed one epoch: convert the records to examples, pickle them into a binary file, shuffle it into another, read it,
tokenize each text with a greedy loop, encode each example node by node, put it into the open row that it fills best,
and pad a batch of rows into arrays when more rows than a batch has are open.

It does less than the original, which imports torch for each command, and repeats the epoch's part on every rank, for
the rows of all ranks, in each epoch.

Arrays of a batch: inputs, inputs_sub, context, sample_ids, num_segments, segment_ids, segment_rel_offset, spans, target
(rows, length); length (rows,); segment_rel (rows, entries); ext_ids, ext_sub (columns,).
"""

import json
import pickle
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
MAX_LENGTH = 2048
ROWS_OF_A_BATCH = 20  # the tutorial's: 5 rows on each of 4 GPUs
_MAX_DEPTH = 8
_TOKEN_ARRAYS = (
    "inputs", "inputs_sub", "context", "sample_ids", "num_segments", "segment_ids", "segment_rel_offset",
)  # fmt: skip

Batch = dict[str, NDArray[np.int32]]


class Piece:
    """A token of a text."""

    def __init__(self, text: str, start: int, is_unknown: bool, is_special: bool) -> None:
        self.text = text
        self.start = start
        self.is_unknown = is_unknown
        self.is_special = is_special


class GreedyTokenizer:
    """Finds the longest entry of the vocabulary by trying ever shorter substrings."""

    def __init__(self, vocabulary: bytes) -> None:
        entries = [line for line in vocabulary.decode().split("\n") if line]
        self.id_of = {{"</n>": "\n", "</_>": " "}.get(entry, entry): number for number, entry in enumerate(entries)}
        self.longest = max(map(len, self.id_of))

    def tokenize(self, text: str) -> list[Piece]:
        """Return the pieces of a text; neighboring unknown characters are one piece."""
        pieces: list[Piece] = []
        position = 0
        for part, is_special in _split_special(text):
            if is_special:
                pieces.append(Piece(part, position, False, True))
            else:
                self._tokenize_plain(part, position, pieces)
            position += len(part)
        return pieces

    def _tokenize_plain(self, part: str, position: int, pieces: list[Piece]) -> None:
        start, unknown = 0, ""
        while start < len(part):
            piece = self._longest_entry(part[start : start + self.longest])
            if piece in self.id_of:
                if unknown:
                    pieces.append(Piece(unknown, position + start - len(unknown), True, False))
                    unknown = ""
                pieces.append(Piece(piece, position + start, False, False))
            else:
                unknown += piece
            start += len(piece)
        if unknown:
            pieces.append(Piece(unknown, position + start - len(unknown), True, False))

    def _longest_entry(self, text: str) -> str:
        for end in range(len(text), 0, -1):
            piece = text[:end]
            if piece in self.id_of:
                return piece
        return text[0]

    def encode(self, text: str) -> list[int | str]:
        """Return ids, and the texts of tokens that are not in the vocabulary."""
        ids: list[int | str] = []
        for piece in self.tokenize(text):
            if piece.is_unknown or (piece.is_special and piece.text not in self.id_of):
                ids.append(piece.text)
            else:
                ids.append(self.id_of[piece.text])
        return ids


def _split_special(text: str) -> Iterator[tuple[str, bool]]:
    """Yield plain text and special tokens, found character by character, and whether it is special; `<<` is a
    literal `<`."""
    part, escaped, inside = "", False, False
    for number, character in enumerate(text):
        if escaped:
            escaped = False
        elif inside:
            part += character
            if character == ">":
                yield part, True
                part, inside = "", False
        elif character != "<":
            part += character
        elif text[number + 1 : number + 2] == "<":
            part += character
            escaped = True
        else:
            if part:
                yield part, False
            part, inside = character, True
    if part:
        yield part, False


@dataclass
class Node:
    text: str
    number: int
    depth: int
    is_answer: bool = False
    children: "list[Node]" = field(default_factory=list)


@dataclass
class Encoding:
    """An example of N tokens and S segments."""

    inputs: NDArray[np.int32]
    inputs_sub: NDArray[np.int32]
    context: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    segment_rel: NDArray[np.int32]
    """(S * S,)"""
    num_segments: int


def encode(tokenizer: GreedyTokenizer, example: dict[str, Any]) -> Encoding:
    """Encode token by token, node by node, pair by pair."""
    nodes = [Node("<root>", 0, 0)]

    def grow(parent: Node, items: dict[str, Any], is_answer: bool) -> None:
        for key, value in items.items():
            nodes.append(node := Node(key, len(nodes), parent.depth + 1))
            parent.children.append(node)
            answers = is_answer or (parent.depth == 0 and key == "<ans>")
            if isinstance(value, dict):
                grow(node, value, answers)
            else:
                nodes.append(Node(value, len(nodes), node.depth + 1, answers))
                node.children.append(nodes[-1])

    grow(nodes[0], example, False)
    ids: list[int] = []
    subs: list[int] = []
    context: list[int] = []
    segments: list[int] = []
    numbers: dict[str, dict[str, int]] = {}  # of tokens that share an id

    def add(token_id: int, sub: int, node: Node) -> None:
        ids.append(token_id)
        subs.append(sub)
        context.append(0 if node.is_answer else 1)
        segments.append(node.number)

    for node in nodes:
        add(tokenizer.id_of["<s>"], 0, node)
        for token in tokenizer.encode(node.text):
            if isinstance(token, int):
                add(token, 0, node)
                continue
            base = f"<{token[1:-1].split('_')[0]}>" if token.startswith("<") and token.endswith(">") else "<unk>"
            same = numbers.setdefault(base, {})
            add(tokenizer.id_of[base], same.setdefault(token, len(same)), node)
        if not node.is_answer:
            add(tokenizer.id_of["</s>"], 0, node)
    return Encoding(
        inputs=np.array(ids, dtype=np.int32),
        inputs_sub=np.array(subs, dtype=np.int32),
        context=np.array(context, dtype=np.int32),
        segment_ids=np.array(segments, dtype=np.int32),
        segment_rel=_relations(nodes),
        num_segments=len(nodes),
    )


def _relations(nodes: list[Node]) -> NDArray[np.int32]:
    """Return the buckets of the paths between all pairs of nodes: levels up to their common ancestor, and down."""
    relations = np.zeros(len(nodes) ** 2, dtype=np.int32)

    def visit(ancestor: Node) -> list[Node]:
        below = [ancestor]
        for child in ancestor.children:
            of_child = visit(child)
            for one in of_child:
                for other in below:
                    up = min(one.depth - ancestor.depth, _MAX_DEPTH - 1)
                    down = min(other.depth - ancestor.depth, _MAX_DEPTH - 1)
                    relations[one.number * len(nodes) + other.number] = up * _MAX_DEPTH + down + 1
                    relations[other.number * len(nodes) + one.number] = down * _MAX_DEPTH + up + 1
            below += of_child
        return below

    visit(nodes[0])
    return relations


class Row:
    """An open row, whose arrays grow with each example."""

    def __init__(self) -> None:
        self.arrays = {name: np.zeros(0, np.int32) for name in (*_TOKEN_ARRAYS, "spans", "segment_rel")}
        self.num_examples = 0

    def __len__(self) -> int:
        return len(self.arrays["inputs"])

    def add(self, e: Encoding) -> None:
        num_tokens = len(e.inputs)
        new = {
            "inputs": e.inputs,
            "inputs_sub": e.inputs_sub,
            "context": e.context,
            "sample_ids": np.zeros(num_tokens, np.int32),
            "num_segments": np.full(num_tokens, e.num_segments, np.int32),
            "segment_ids": e.segment_ids,
            "segment_rel_offset": np.full(num_tokens, len(self.arrays["segment_rel"]), np.int32),
            "spans": np.full(num_tokens, self.num_examples, np.int32),
            "segment_rel": e.segment_rel,
        }
        self.arrays = {name: np.concatenate([array, new[name]]) for name, array in self.arrays.items()}
        self.num_examples += 1


def packed(tokenizer: GreedyTokenizer, examples: Iterable[dict[str, Any]]) -> Iterator[Batch]:
    """Put each example into the open row with the least sufficient space. When more rows are open than a batch has, the
    oldest ones become a batch."""
    rows: list[Row] = []
    for example in examples:
        encoding = encode(tokenizer, example)
        best, best_space = None, MAX_LENGTH + 1
        for row in rows:
            space = MAX_LENGTH - len(row)
            if len(encoding.inputs) <= space < best_space:
                best, best_space = row, space
        if best is None:
            rows.append(best := Row())
        best.add(encoding)
        if len(rows) > ROWS_OF_A_BATCH:
            yield padded(tokenizer, rows[:ROWS_OF_A_BATCH])
            rows = rows[ROWS_OF_A_BATCH:]
    if rows:
        yield padded(tokenizer, rows)


def padded(tokenizer: GreedyTokenizer, rows: list[Row]) -> Batch:
    """Return the arrays of a batch (see the module docstring); targets are found token by token."""
    bos, eos, vocab_size = tokenizer.id_of["<s>"], tokenizer.id_of["</s>"], len(tokenizer.id_of)
    num_entries = max(len(row.arrays["segment_rel"]) for row in rows)
    batch = {name: np.zeros((len(rows), MAX_LENGTH), np.int32) for name in (*_TOKEN_ARRAYS, "spans")}
    batch["target"] = np.full((len(rows), MAX_LENGTH), IGNORED, np.int32)
    batch["length"] = np.array([len(row) for row in rows], np.int32)
    batch["segment_rel"] = np.zeros((len(rows), num_entries), np.int32)
    columns: dict[tuple[int, int], int] = {}
    for r, row in enumerate(rows):
        batch["spans"][r] = row.num_examples  # of the padding behind the row's end
        for name, array in row.arrays.items():
            batch[name][r, : len(array)] = array
        for position in range(len(row)):
            token, sub = int(batch["inputs"][r, position]), int(batch["inputs_sub"][r, position])
            target = vocab_size + columns.setdefault((token, sub), len(columns)) if sub else token
            if position and batch["context"][r, position - 1] == 0:
                batch["target"][r, position - 1] = eos if token == bos else target
        if batch["context"][r, len(row) - 1] == 0:
            batch["target"][r, len(row) - 1] = eos
    batch["ext_ids"], batch["ext_sub"] = np.array(list(columns) or [(0, 1)], np.int32).T
    return batch


def reformat(raw: Path, target: Path) -> None:
    """Convert raw records of CCPM to examples, JSON to JSON."""
    with raw.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            passage, *options = re.split(r"\[\d\]", row["input"].removeprefix("[翻译]").removesuffix("[答案]"))
            example = {
                "input": passage,
                "options": {f"<option_{number}>": option for number, option in enumerate(options)},
                "question": "这段话形容了哪句诗的意境？",
                "<ans>": f"<option_{row['target']}>",
            }
            out.write(json.dumps(example, ensure_ascii=False) + "\n")


def preprocess(source: Path, target: Path) -> None:
    """Write examples to a file of pickled records, then to another one in shuffled order."""
    ordered = target.with_suffix(".ordered")
    with source.open(encoding="utf-8") as lines, ordered.open("wb") as out:
        for line in lines:
            pickle.dump(json.loads(line), out)
    records = list(read(ordered))
    random.Random(0).shuffle(records)
    with target.open("wb") as out:
        for record in records:
            pickle.dump(record, out)


def read(source: Path) -> Iterator[dict[str, Any]]:
    """Yield the examples that `preprocess` wrote."""
    with source.open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)


def main(raw: str, vocabulary: str, folder: str) -> None:
    """Do all of it; print rows, tokens, and the seconds that each further epoch costs again."""
    examples, records = Path(folder) / "examples.jsonl", Path(folder) / "records"
    reformat(Path(raw), examples)
    preprocess(examples, records)
    tokenizer = GreedyTokenizer(Path(vocabulary).read_bytes())
    num_rows = num_tokens = 0
    start = time.perf_counter()
    for batch in packed(tokenizer, read(records)):
        num_rows += len(batch["length"])
        num_tokens += int(batch["length"].sum())
    print(json.dumps({"rows": num_rows, "tokens": num_tokens, "epoch_seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
