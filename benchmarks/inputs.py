"""Inputs of the benchmarks: records of CCPM, the tutorial's data, and CPM-Bee's vocabulary.

With `CPMBEE_REFERENCE=folder` they are the real ones in it (`data/ccpm/train.jsonl`, `model/vocab.txt`). Otherwise both
are generated from a seed in the same shape: as many entries of each kind and length, records of as many characters, and
as many tokens by the greedy tokenizer.
"""

import json
import os
import random
import tempfile
from functools import lru_cache
from itertools import accumulate, cycle, islice
from pathlib import Path

from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.urls import open_store

NUM_ROWS = 21_778
MAX_LENGTH = 2048

_REFERENCE = os.environ.get("CPMBEE_REFERENCE")
_SPECIAL = "<pad> <unk> <mask> <sep> </n> </_> <s> </s> <root> <ans> <option> <eod>".split()
_CJK_WORDS = {2: 20_207, 3: 2_547, 4: 1_226, 5: 51}
_CJK = "".join(map(chr, range(0x4E00, 0x4E00 + 6_843)))
_ASCII_PIECES = {
    2: 1_533, 3: 4_591, 4: 7_676, 5: 8_398, 6: 7_813, 7: 7_211, 8: 5_967, 9: 4_506, 10: 3_159, 11: 2_108, 12: 1_240,
    13: 661, 14: 363, 15: 140, 16: 48, 17: 16, 18: 9, 19: 5, 21: 2,
}  # fmt: skip
_WORDS = "input options question option answer 这段 形容 哪句 意境".split()  # of an example of CCPM
_PUNCTUATION = "，。？！、：；“”《》（）…—·"
_LONGEST = "_" * 32
_BIGRAMS = 0.18  # share of words of two characters among a text's tokens
_UNKNOWN = 0.0005  # share of characters missing in the vocabulary


def caption() -> str:
    """Describe the inputs."""
    made = "generated records and vocabulary in the shape of CCPM and CPM-Bee (CPMBEE_REFERENCE is not set)"
    return "the records of CCPM and CPM-Bee's own vocabulary" if _REFERENCE else made


@lru_cache(1)
def vocabulary() -> bytes:
    """Return the content of a `vocab.txt`, with about 86,583 entries."""
    if _REFERENCE:
        return (Path(_REFERENCE) / "model" / "vocab.txt").read_bytes()
    draw = random.Random(0)
    entries = [*_SPECIAL, *map(chr, range(33, 127)), *_PUNCTUATION, *_CJK, *_WORDS, _LONGEST]
    seen = set(entries)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    common = list(accumulate(1 / (rank + 3) for rank in range(len(_CJK))))
    for counts, alphabet, weights in (
        (_CJK_WORDS, _CJK, common),
        (_ASCII_PIECES, letters + letters.upper(), None),
    ):
        for length, count in counts.items():
            missing = count
            while missing:
                entry = "".join(draw.choices(alphabet, cum_weights=weights, k=length))
                if entry not in seen:
                    seen.add(entry)
                    entries.append(entry)
                    missing -= 1
    return ("\n".join(entries) + "\n").encode()


@lru_cache(1)
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(vocabulary())


def num_rows(quick: bool) -> int:
    """Records of CCPM to prepare."""
    return NUM_ROWS // 4 if quick else NUM_ROWS


def ccpm_lines(num_rows: int = NUM_ROWS) -> list[str]:
    """Return raw records of CCPM as JSON, without line ends, repeated if there are not enough."""
    return list(islice(cycle(_rows()), num_rows))


@lru_cache(1)
def _rows() -> list[str]:
    if _REFERENCE:
        return (Path(_REFERENCE) / "data" / "ccpm" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    draw = random.Random(1)
    words = [line for line in vocabulary().decode().split("\n") if len(line) == 2 and not line.isascii()]
    common = list(accumulate(1 / (rank + 3) for rank in range(len(_CJK))))

    def text(length: int) -> str:
        pieces: list[str] = []
        while length > 0:
            if draw.random() < _UNKNOWN:
                pieces.append(chr(draw.randrange(0xAC00, 0xD7A3)))  # Hangul
            elif length > 1 and draw.random() < _BIGRAMS:
                pieces.append(draw.choice(words))
            else:
                pieces += draw.choices(_CJK, cum_weights=common)
            length -= len(pieces[-1])
        return "".join(pieces)

    rows = []
    for _ in range(NUM_ROWS):
        length = draw.choices([5, 7, 12, 16], weights=[47, 43, 5, 5])[0]
        passage = text(max(1, min(116, round(draw.gauss(15, 8))))) + "。"
        options = "".join(f"[{number}]{text(length)}" for number in range(4))
        row = {"target": str(draw.randrange(4)), "input": f"[翻译]{passage}{options}[答案]"}
        rows.append(json.dumps(row, ensure_ascii=False))
    return rows


def long_text(num_tokens: int, seed: int) -> str:
    """Return a text of exactly that many tokens, drawn from the records."""
    draw = random.Random(seed)
    text = ""
    while True:
        text += "".join(json.loads(row)["input"] for row in draw.choices(_rows(), k=-(-num_tokens // 50)))
        ids, unknown = tokenizer().encode(text)
        if len(ids) >= num_tokens:
            return tokenizer().decode(ids[:num_tokens], unknown)


@lru_cache(1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cpmbee-benchmarks-")


@lru_cache(1)
def prepared_ccpm(quick: bool) -> PackedDataset:
    """Prepare once for all benchmarks of this process, with the default piece size."""
    folder = Path(_scratch().name)
    raw = folder / "raw.jsonl"
    raw.write_text("\n".join(ccpm_lines(num_rows(quick))) + "\n", encoding="utf-8")
    out = open_store(str(folder / "rows"))
    prepare(Preparation(open_source(str(raw)), PrepareSettings(MAX_LENGTH, format="ccpm"), tokenizer()), out)
    return PackedDataset.open(out)


def job_file(folder: Path, raw: Path, format_name: str) -> Path:
    """A job spec that prepares `raw`."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "vocab.txt").write_bytes(vocabulary())
    spec = {
        "name": "benchmark",
        "model": str(model),
        "data": {"train": str(raw), "format": format_name},
        "output": str(folder / "runs"),
        "train": {"max_length": MAX_LENGTH},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
    return path
