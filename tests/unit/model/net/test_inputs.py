import warnings

import numpy as np
import pytest

from cpmbee_job.model.net.inputs import ModelInputs, plan_groups
from tests.oracle import flatten_rows, random_rows


@pytest.mark.parametrize("lengths", [[5], [9, 8, 1, 200, 7, 190, 160, 3], [7] * 20, [2048, 2048, 2040], [0, 3, 0]])
def test_groups_contain_every_token_once(lengths):
    groups, restore = plan_groups(lengths)
    padded = np.concatenate([group.gather_BL.numpy().flatten() for group in groups])
    assert padded[restore.numpy()].tolist() == list(range(sum(lengths)))
    assert sum(int(group.valid_BL.sum()) for group in groups) == sum(lengths)


def test_a_group_has_similar_lengths_and_a_bounded_size():
    lengths = list(range(1, 600, 7)) + [2048] * 3
    groups, _ = plan_groups(lengths)
    for group in groups:
        sizes = group.valid_BL.sum(1)
        assert sizes.max() <= sizes.min() * 1.25 + 16
        assert group.gather_BL.shape[1] % 8 == 0
        assert len(sizes) == 1 or group.gather_BL.numel() * group.gather_BL.shape[1] <= 2**22


def test_padding_repeats_a_token_of_the_same_example():
    groups, _ = plan_groups([9, 10])
    (group,) = groups
    assert group.gather_BL[0, 9:].tolist() == [0] * 7
    assert group.gather_BL[1, 10:].tolist() == [9] * 6


def test_lengths_must_sum_to_the_number_of_tokens():
    arrays = flatten_rows(random_rows(np.random.default_rng(0), 50, 1, 2))
    with pytest.raises(ValueError, match="lengths"):
        ModelInputs.from_numpy(**{**arrays, "lengths": arrays["lengths"][:1]})


def test_read_only_arrays_are_accepted():
    arrays = flatten_rows(random_rows(np.random.default_rng(0), 50, 1, 2))
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelInputs.from_numpy(**arrays)
