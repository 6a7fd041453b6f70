from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import DataError, NotFoundError
from tests.conftest import TINY_VOCAB

TINY = Tokenizer.from_bytes("\n".join(TINY_VOCAB).encode())


BRACKETED = st.lists(st.sampled_from([*"<>_0as今🙂 ", "<ans>", "<mask_0>", "<<", "<s>"])).map("".join)


def greedy(text: str) -> list[str | int]:
    """The rule, character by character: the longest entry, or adjacent characters without an entry together."""
    vocabulary = {{"</n>": "\n", "</_>": " "}.get(token, token): i for i, token in enumerate(TINY_VOCAB)}
    pieces: list[str | int] = []
    position = 0
    while position < len(text):
        for end in range(len(text), position, -1):
            piece = text[position:end]
            if piece in vocabulary and not (piece[0] == "<" and piece[-1] == ">"):
                pieces.append(vocabulary[piece])
                break
        else:
            end = position + 1
            if pieces and isinstance(pieces[-1], str):
                pieces[-1] += text[position]
            else:
                pieces.append(text[position])
        position = end
    return pieces


def tokens(text: str, *, strict: bool = False) -> list[str]:
    ids, ext_table = TINY.encode(text, strict=strict)
    return [TINY.decode([token_id], ext_table) for token_id in ids]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("今天气hello the\n𠮷🙂é>input_"))))
def test_plain_text_is_split_by_the_greedy_rule(text: str) -> None:
    ids, ext_table = TINY.encode(text)
    assert [ext_table.get(token_id, token_id) for token_id in ids] == greedy(text)


@settings(max_examples=300, deadline=None)
@given(BRACKETED)
def test_lenient_encoding_accepts_every_text_without_loss(text: str) -> None:
    decoded = TINY.decode(*TINY.encode(text))
    assert decoded.replace("<<", "<") == text.replace("<<", "<")


@settings(max_examples=300, deadline=None)
@given(BRACKETED)
def test_decoded_text_is_encoded_the_same_when_strict(text: str) -> None:
    ids, ext_table = TINY.encode(text)
    assert TINY.encode(TINY.decode(ids, ext_table), strict=True) == (ids, ext_table)


def test_the_longest_entry_wins() -> None:
    assert tokens("今天天气") == ["今天天气"]
    assert tokens("今天天") == ["今天", "天"]


def test_adjacent_unknown_characters_are_one_piece_with_its_own_id() -> None:
    ids, ext_table = TINY.encode("a🙂𠮷b🙂c🙂𠮷")
    size = TINY.vocab_size
    assert ext_table == {size: "🙂𠮷", size + 1: "🙂"}
    assert [i for i in ids if i >= size] == [size, size + 1, size]


def test_characters_beyond_the_basic_plane_do_not_shift_positions() -> None:
    assert tokens("🙂hello𠮷今天") == ["🙂", "hello", "𠮷", "今天"]


def test_numbering_continues_from_a_given_table() -> None:
    size = TINY.vocab_size
    ids, ext_table = TINY.encode("<mask_1>🙂", {size: "🙂"})
    assert ids == [size + 1, size]
    assert ext_table == {size: "🙂", size + 1: "<mask_1>"}


def test_a_given_table_is_not_modified() -> None:
    table: dict[int, str] = {}
    TINY.encode("🙂", table)
    assert table == {}


def test_newline_and_space_have_their_own_entries() -> None:
    assert TINY.encode("\n ")[0] == [TINY_VOCAB.index("</n>"), TINY_VOCAB.index("</_>")]


def test_special_tokens_of_the_vocabulary_keep_their_id() -> None:
    assert TINY.encode("<sep><ans>", strict=True) == ([TINY_VOCAB.index("<sep>"), TINY_VOCAB.index("<ans>")], {})


def test_two_angle_brackets_are_an_escaped_one() -> None:
    assert TINY.encode("a<<b", strict=True)[0] == [TINY_VOCAB.index(c) for c in "a<b"]
    assert TINY.decode(TINY.encode("a<<b")[0]) == "a<<b"


@pytest.mark.parametrize("text", ["<", "a<", "<mask", "<a<b>", "<>", "<ans><"])
def test_strict_rejects_a_token_without_an_end(text: str) -> None:
    with pytest.raises(DataError, match="without a closing '>'"):
        TINY.encode(text, strict=True)


def test_strict_encoding_gives_any_other_token_its_own_id() -> None:
    size = TINY.vocab_size
    assert TINY.encode("<new><>x>", strict=True) == ([size, size + 1], {size: "<new>", size + 1: "<>x>"})


@pytest.mark.parametrize(
    ("text", "escaped", "literals"),
    [
        ("<问题>你", "<<问题>你", 1),
        ("a<b", "a<<b", 1),
        ("<", "<<", 1),
        ("<a<mask_0>", "<<a<mask_0>", 1),
        ("</n>", "<</n>", 1),
        ("<>x>", "<<>x>", 1),
        ("1<2<3", "1<<2<<3", 2),
        ("a<<b", "a<<b", 0),
        ("<option_7><sep><unk_2>", "<option_7><sep><unk_2>", 0),
    ],
)
def test_lenient_encoding_counts_literal_angle_brackets(text: str, escaped: str, literals: int) -> None:
    tokenizer = Tokenizer.from_bytes("\n".join(TINY_VOCAB).encode())
    assert tokenizer.encode(text) == tokenizer.encode(escaped, strict=True)
    assert tokenizer.cut(text).literals == literals


def test_many_open_brackets_take_linear_time() -> None:
    assert len(TINY.encode("<a" * 200_000)[0]) == 400_000


def test_decoding_skips_negative_ids_and_rejects_unknown_ones() -> None:
    assert TINY.decode([-100, TINY_VOCAB.index("a")]) == "a"
    with pytest.raises(DataError, match="not in the vocabulary"):
        TINY.decode([TINY.vocab_size])


def test_blank_lines_and_line_ends_of_a_vocabulary_are_ignored(tiny_vocab: Path) -> None:
    crlf = "\r\n\r\n".join(TINY_VOCAB).encode()
    for data in (crlf, tiny_vocab.read_bytes(), "\n".join(TINY_VOCAB).encode()):
        tokenizer = Tokenizer.from_bytes(data)
        assert tokenizer.vocab_size == len(TINY_VOCAB)
        assert tokenizer.token_id("今天") == TINY_VOCAB.index("今天")


def test_the_digest_is_that_of_the_file(tiny_vocab: Path) -> None:
    assert Tokenizer.from_file(tiny_vocab).digest != Tokenizer.from_bytes(tiny_vocab.read_bytes() + b"new\n").digest


def test_an_invalid_vocabulary_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        Tokenizer.from_file(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"v.txt: .*</n>"):
        Tokenizer.from_bytes(b"<unk>\n<s>\n", source="v.txt")
    with pytest.raises(DataError, match=r"v.txt: not UTF-8"):
        Tokenizer.from_bytes(b"\xff", source="v.txt")


def test_a_repeated_entry_is_rejected(tiny_vocab: Path) -> None:
    with pytest.raises(DataError, match=rf"vocab.txt:{len(TINY_VOCAB) + 1}: '<mask>' is repeated"):
        Tokenizer.from_bytes("\n".join([*TINY_VOCAB, "<mask>"]).encode())


@pytest.mark.parametrize("token", ["<s>", "<root>", "<ans>"])
def test_a_vocabulary_without_a_required_token_is_rejected(token: str) -> None:
    with pytest.raises(DataError, match=f"missing {token}"):
        Tokenizer.from_bytes("\n".join(t for t in TINY_VOCAB if t != token).encode())
