import numpy as np
import pytest

from cpmbee_job.data.dataset.collate import Collated, collate, collate_examples
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab):
    return Tokenizer.from_file(tiny_vocab)


CHOICE = {"input": "今天", "options": {"<option_0>": "好", "<option_1>": "不"}, "<ans>": "<option_1>"}
NESTED = {"input": "hello", "<ans>": {"a": "天气", "b": ""}}
PLAIN = {"input": "今天天气", "<ans>": "很好"}


def _collate(tokenizer, table: Table, **options) -> Collated:
    return collate(table, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, **options)


def _targets_one_by_one(tokenizer, encoded, columns):
    """The rule, token by token: position j - 1 has the class of token j if it is not given."""
    targets = []
    for j in range(1, encoded.input_ids.size + 1):
        if encoded.context[j - 1]:
            continue
        if j == encoded.input_ids.size or encoded.input_ids[j] == tokenizer.bos_id:
            targets.append((j - 1, tokenizer.eos_id))
        elif encoded.input_id_subs[j]:
            targets.append((j - 1, tokenizer.vocab_size + columns[encoded.input_ids[j], encoded.input_id_subs[j]]))
        else:
            targets.append((j - 1, encoded.input_ids[j]))
    return targets


def test_targets_follow_the_rule(tokenizer):
    examples = [encode_example(tokenizer, example) for example in (CHOICE, NESTED, PLAIN)]
    collated = collate_examples(examples, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    pairs = zip(collated.ext_ids.tolist(), collated.ext_subs.tolist(), strict=True)
    columns = {pair: column for column, pair in enumerate(pairs)}
    expected, start = [], 0
    for encoded in examples:
        expected += [(start + p, int(t)) for p, t in _targets_one_by_one(tokenizer, encoded, columns)]
        start += encoded.input_ids.size
    assert list(zip(collated.target_positions.tolist(), collated.targets.tolist(), strict=True)) == expected


def test_every_array_has_its_shape_and_type(tokenizer):
    examples = [encode_example(tokenizer, example) for example in (CHOICE, PLAIN)]
    collated = collate_examples(examples, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    num_tokens = sum(e.input_ids.size for e in examples)
    for name in ("ids", "subs", "positions", "segments", "samples", "num_segments", "rel_offset"):
        array = getattr(collated, name)
        assert (array.shape, array.dtype) == ((num_tokens,), np.int32), name
    assert (collated.context.shape, collated.context.dtype) == ((num_tokens,), np.bool_)
    assert collated.segment_rel.size == sum(e.num_segments**2 for e in examples)
    assert collated.lengths.tolist() == [e.input_ids.size for e in examples]
    assert collated.rows.tolist() == [0, 1]
    for name in ("segment_rel", "lengths", "target_positions", "targets", "ext_ids", "ext_subs", "rows"):
        assert getattr(collated, name).dtype == np.int32, name


def test_tables_of_relations_are_found_by_offset(tokenizer):
    examples = [encode_example(tokenizer, example) for example in (CHOICE, PLAIN)]
    collated = collate_examples(examples, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    last = collated.ids.size - 1
    size = collated.num_segments[last]
    table = collated.segment_rel[collated.rel_offset[last] :][: size * size]
    np.testing.assert_array_equal(table, examples[1].segment_rel)


def test_a_placeholder_where_no_token_needs_an_extra_column(tokenizer):
    collated = collate_examples(
        [encode_example(tokenizer, PLAIN)], tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    assert (collated.ext_ids.tolist(), collated.ext_subs.tolist()) == ([0], [1])


def test_an_examples_classes_are_its_own_columns(tokenizer):
    examples = [encode_example(tokenizer, example) for example in (PLAIN, CHOICE)]
    collated = collate_examples(examples, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    option = tokenizer.token_id("<option>")
    assert list(zip(collated.ext_ids.tolist(), collated.ext_subs.tolist(), strict=True)) == [(0, 1), (option, 1)]
    of_plain = collated.target_positions < collated.lengths[0]
    assert collated.columns[of_plain].tolist() == [[True, False]] * int(of_plain.sum())  # the placeholder
    assert collated.columns[~of_plain].tolist() == [[False, True]] * int((~of_plain).sum())


def test_an_examples_classes_do_not_depend_on_the_batch(tokenizer):
    examples = [encode_example(tokenizer, example) for example in (PLAIN, CHOICE)]
    whole = _collate(tokenizer, Table.of(examples))
    alone = _collate(tokenizer, Table.of(examples[1:]))
    for name in ("ext_ids", "ext_subs"):
        chosen = getattr(whole, name)[whole.columns[-1]]
        np.testing.assert_array_equal(chosen, getattr(alone, name)[alone.columns[-1]])


def test_rows_without_weight_have_no_targets(tokenizer):
    table = Table.of([encode_example(tokenizer, example) for example in (PLAIN, CHOICE, PLAIN)], np.array([0, 0, 1]))
    whole = _collate(tokenizer, table)
    first = _collate(tokenizer, table, weights=np.array([True, False]))
    none = _collate(tokenizer, table, weights=np.array([False, False]))
    start_of_second_row = int(whole.lengths[:2].sum())
    kept = whole.target_positions < start_of_second_row
    np.testing.assert_array_equal(first.target_positions, whole.target_positions[kept])
    np.testing.assert_array_equal(first.targets, whole.targets[kept])
    assert none.targets.size == none.target_positions.size == 0
    np.testing.assert_array_equal(first.ids, whole.ids)


def test_in_context_samples_are_numbered_and_keep_their_own_tables(tokenizer):
    main, sample = encode_example(tokenizer, PLAIN), encode_example(tokenizer, CHOICE)
    both = Table.of([main, sample])
    table = Table(
        **{
            **{name: getattr(both, name) for name in Table.__dataclass_fields__},
            "context": np.concatenate([main.context, np.ones_like(sample.context)]),
            "sample_counts": np.array([2], np.int32),
            "rows": np.array([0], np.int32),
        }
    )
    collated = _collate(tokenizer, table)
    lengths = [main.input_ids.size, sample.input_ids.size]
    assert collated.lengths.tolist() == [sum(lengths)]
    assert collated.samples.tolist() == [0] * lengths[0] + [1] * lengths[1]
    assert collated.positions.tolist() == list(range(sum(lengths)))
    assert collated.rel_offset.tolist() == [0] * lengths[0] + [main.num_segments**2] * lengths[1]
    assert collated.num_segments.tolist() == [main.num_segments] * lengths[0] + [sample.num_segments] * lengths[1]
    assert collated.targets[-1] == tokenizer.eos_id, "the sample's <s> ends the answer before it"
    assert collated.target_positions[-1] == lengths[0] - 1
