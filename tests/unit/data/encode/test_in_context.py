import json

import numpy as np
import pytest

from cpmbee_job.data.dataset.collate import collate
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.in_context import InContext
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore
from tests.conftest import TINY_VOCAB

TINY = Tokenizer.from_bytes("\n".join(TINY_VOCAB).encode())
EXAMPLES = [
    {
        "input": f"{number} 今天",
        "options": {"<option_0>": "好", f"<option_{number % 3}>": "不"},
        "<ans>": f"<option_{n}>",
    }
    for n, number in enumerate(range(40), start=1)
]
ENCODED = [encode_example(TINY, example) for example in EXAMPLES]


def extended(frequencies, max_length=1000, place=(3, 0)):
    drawn = InContext(TINY, frequencies, max_length)
    return drawn.extend(list(zip(EXAMPLES, ENCODED, strict=True)), place), drawn.num_left_out


def test_numbers_of_samples_have_the_given_frequencies():
    examples = [{"<ans>": str(number)} for number in range(3000)]
    many = [(example, encode_example(TINY, example)) for example in examples]
    drawn = InContext(TINY, (1, 2, 1), 1000).extend(many, (0,))
    shares = np.bincount([len(samples) - 1 for samples in drawn]) / 3000
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)


def test_an_example_never_sees_itself_nor_another_twice():
    for number, samples in enumerate(extended((0, 0, 0, 0, 1))[0]):
        answers = [TINY.decode(sample.input_ids[-1:].tolist()) for sample in samples]
        assert len(answers) == 5
        texts = [tuple(sample.input_ids[sample.segment_ids == 2].tolist()) for sample in samples]
        assert len(set(texts)) == 5
        assert samples[0] is ENCODED[number]


def test_only_the_example_is_predicted_and_its_samples_are_given():
    for samples in extended((0, 1))[0]:
        assert (samples[0].context == 0).any()
        assert (samples[1].context == 1).all()


def test_tokens_missing_from_the_vocabulary_keep_their_numbers_across_samples():
    first = {"a": "☀", "<ans>": "☂"}
    second = {"a": "☂", "<ans>": "☃"}
    after = encode_example(TINY, second, after=encode_example(TINY, first))
    subs = after.input_id_subs[after.input_ids == TINY.unk_id].tolist()
    assert subs == [1, 2]


def test_the_draw_depends_only_on_the_seed():
    def lengths(place):
        return [[sample.input_ids.tolist() for sample in samples] for samples in extended((1, 1, 1), place=place)[0]]

    assert lengths((3, 0)) == lengths((3, 0))
    assert lengths((3, 0)) != lengths((4, 0))


def test_samples_that_do_not_fit_are_counted():
    drawn, left_out = extended((0, 0, 0, 1), max_length=80)
    assert max(sum(sample.input_ids.size for sample in samples) for samples in drawn) <= 80
    assert left_out == sum(4 - len(samples) for samples in drawn) > 0


@pytest.fixture
def dataset(tmp_path, tiny_vocab):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(example, ensure_ascii=False) for example in EXAMPLES), encoding="utf-8")
    out = FileStore(str(tmp_path / "out"))
    settings = PrepareSettings(max_length=256, in_context=(0, 1, 1))
    prepare(Preparation(open_source(str(path), piece_bytes=3000), settings, Tokenizer.from_file(tiny_vocab)), out)
    return PackedDataset.open(out)


def test_a_prepared_set_trains_on_each_example_once(dataset):
    table = dataset.table(np.arange(dataset.num_rows))
    assert dataset.num_examples == table.sample_counts.size == 40
    assert set(table.sample_counts.tolist()) == {2, 3}
    index = dataset.indexes[0]
    assert index.tokens == table.input_ids.size
    assert (
        index.target_tokens == np.count_nonzero(table.context == 0) == sum(int((e.context == 0).sum()) for e in ENCODED)
    )
    assert (
        np.bincount(table.rows, np.add.reduceat(table.sample_lengths, np.cumsum([0, *table.sample_counts[:-1]]))).max()
        <= 256
    )


def test_collated_samples_have_their_numbers_and_tables(dataset):
    table = dataset.table(np.arange(dataset.num_rows))
    collated = collate(table, TINY.vocab_size, TINY.bos_id, TINY.eos_id)
    assert set(collated.samples.tolist()) == {0, 1, 2}
    assert (collated.samples[collated.target_positions] == 0).all()
    assert collated.lengths.sum() == table.input_ids.size


def test_a_table_of_samples_is_one_of_examples_where_each_has_one():
    np.testing.assert_array_equal(
        Table.of(ENCODED).sample_counts, Table.of(ENCODED, sample_counts=np.ones(40, np.int32)).sample_counts
    )
