"""Measure characters tokenized per second, on one core."""

import json
import os
from collections.abc import Iterator
from typing import Any

from benchmarks import inputs
from benchmarks.measure import Figure, one_core, paired, rate
from benchmarks.original import GreedyTokenizer
from cpmbee_job.data.encode.tokenizer import Tokenizer


def figures(quick: bool) -> Iterator[Figure]:
    texts = [json.loads(line)["input"] for line in inputs.ccpm_lines(2_000 if quick else 10_000)]
    num_characters = sum(map(len, texts))
    greedy, word_piece = GreedyTokenizer(inputs.vocabulary()), _word_piece()
    repeats = 1 if quick else 3
    fresh = iter([_fresh() for _ in range(2 * repeats)])

    def ours() -> None:
        tokenizer = next(fresh)
        for text in texts:
            tokenizer.encode(text)

    def original() -> None:
        for text in texts:
            greedy.encode(text)

    def hugging_face() -> None:
        for text in texts:
            word_piece.encode(text, add_special_tokens=False).ids  # noqa: B018

    for name, baseline, mark in (
        ("greedy loop in Python", original, 15),
        ("HF tokenizers' WordPiece", hugging_face, 1),
    ):
        with one_core():
            seconds, their_seconds = paired(ours, baseline, repeats)
        yield Figure(
            what="tokenizer, one core",
            ours=rate(num_characters, seconds, "characters"),
            baseline=f"{rate(num_characters, their_seconds, 'characters')}, {name}",
            ratio=their_seconds / seconds,
            mark=mark,
        )


def _fresh() -> Tokenizer:
    """Return a tokenizer without cached texts, whose automaton is built."""
    tokenizer = Tokenizer.from_bytes(inputs.vocabulary())
    tokenizer.encode("")
    return tokenizer


def _word_piece() -> Any:
    """Return HF's greedy model with the same vocabulary, in its fastest configuration. It splits texts at
    punctuation first, because its time grows with the square of a word's length. (So it finds no entry that contains
    punctuation, and a word with an unknown character becomes one unknown token.)"""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers
    from tokenizers import models, pre_tokenizers

    id_of = GreedyTokenizer(inputs.vocabulary()).id_of
    model = models.WordPiece(id_of, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=1 << 20)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
