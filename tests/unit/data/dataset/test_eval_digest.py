import json

import pytest

from cpmbee_job.data.dataset.eval_digest import EvalDigest, dataset_digest
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.encoder import answer_order, encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore

EXAMPLES = [
    {"input": "今天" * (number % 9), "<ans>": {"天气": str(number), "好": "不", "<option_7>": "他"}}
    for number in range(60)
]


@pytest.fixture
def digest_of(tmp_path, tiny_vocab):
    """Prepare examples and return the digest of the dataset."""

    def prepared(examples, piece_bytes=500, max_length=128, **settings):
        path = tmp_path / "eval.jsonl"
        path.write_text("\n".join(json.dumps(example, ensure_ascii=False) for example in examples), encoding="utf-8")
        store = FileStore(str(tmp_path / "prepared"))
        asked = PrepareSettings(max_length=max_length, **settings)
        prepare(
            Preparation(open_source(str(path), piece_bytes=piece_bytes), asked, Tokenizer.from_file(tiny_vocab)), store
        )
        return dataset_digest(PackedDataset.open(store))

    return prepared


def test_the_digest_does_not_depend_on_order_packing_or_pieces(digest_of):
    digest = digest_of(EXAMPLES)
    assert digest_of(EXAMPLES[::-1]) == digest
    assert digest_of(EXAMPLES, piece_bytes=100_000, max_length=512) == digest


@pytest.mark.parametrize(
    "others",
    [
        EXAMPLES[1:],
        [*EXAMPLES, EXAMPLES[0]],
        [EXAMPLES[1], *EXAMPLES[1:]],
        [{**EXAMPLES[0], "input": "x"}, *EXAMPLES[1:]],
        [{**EXAMPLES[0], "<ans>": {**EXAMPLES[0]["<ans>"], "好": "好"}}, *EXAMPLES[1:]],
    ],
    ids=["fewer", "one twice", "one for another", "another text", "another answer"],
)
def test_other_examples_have_another_digest(digest_of, others):
    assert digest_of(others) != digest_of(EXAMPLES)


def test_truncated_examples_have_another_digest(digest_of):
    long = [{"input": "今天" * 200, "<ans>": "好"}]
    cut = digest_of(long, too_long="truncate-context")
    assert cut != digest_of(long, max_length=512)


def test_examples_one_by_one_have_the_digest_of_the_prepared_ones(digest_of, tiny_vocab):
    tokenizer, digest = Tokenizer.from_file(tiny_vocab), EvalDigest()
    for example in EXAMPLES:
        digest.add(encode_example(tokenizer, example, answer_order=answer_order(example)).arrays)
    assert digest.hexdigest() == digest_of(EXAMPLES)
