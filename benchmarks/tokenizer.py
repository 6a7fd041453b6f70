"""Characters tokenized in a second, on one core."""

import json
import os
from collections.abc import Callable, Iterator

from benchmarks import inputs
from benchmarks.measure import Figure, one_core, paired, rate
from benchmarks.original import GreedyTokenizer


def figures(quick: bool) -> Iterator[Figure]:
    texts = [json.loads(line)["input"] for line in inputs.ccpm_lines(2_000 if quick else 10_000)]
    num_characters = sum(map(len, texts))
    tokenizer, greedy = inputs.tokenizer(), GreedyTokenizer(inputs.vocabulary())

    def ours() -> None:
        for text in texts:
            tokenizer.encode(text)

    def original() -> None:
        for text in texts:
            greedy.tokenize(text)

    with one_core():
        seconds, original_seconds = paired(ours, original, repeats=3)
        yield Figure(
            what="tokenizer, one core",
            ours=rate(num_characters, seconds, "characters"),
            baseline=f"{rate(num_characters, original_seconds, 'characters')}, greedy loop in Python",
            ratio=original_seconds / seconds,
            mark=15,
        )
        word_piece = _word_piece()
        seconds, their_seconds = paired(ours, lambda: word_piece(texts), repeats=5)
        yield Figure(
            what="tokenizer, one core",
            ours=rate(num_characters, seconds, "characters"),
            baseline=f"{rate(num_characters, their_seconds, 'characters')}, HF tokenizers' WordPiece",
            ratio=their_seconds / seconds,
            mark=1,
        )


def _word_piece() -> Callable[[list[str]], list[list[int]]]:
    """HF's greedy model over the same vocabulary, in the fastest of the ways that it can be set up: texts are cut at
    punctuation first, since the time it takes grows with the square of a word's length. (So it finds no entry across a
    mark; and of a word with an unknown character it makes one unknown token.)"""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer, models, pre_tokenizers

    id_of = GreedyTokenizer(inputs.vocabulary()).id_of
    model = models.WordPiece(id_of, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=1 << 20)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return lambda texts: [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
