import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.dataset.pack import pack


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_example_is_packed_into_a_row_that_it_fits(lengths):
    rows = pack(lengths, 64)
    assert rows.dtype == np.int32
    assert rows.size == len(lengths)
    loads = np.bincount(rows, weights=lengths)
    assert np.all(loads <= 64)
    assert np.all(loads > 0), "rows are numbered without gaps"


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_same_lengths_same_rows(lengths):
    np.testing.assert_array_equal(pack(lengths, 64), pack(np.array(lengths), 64))


@pytest.mark.parametrize("low", [1, 20, 80])
@pytest.mark.parametrize("high", [170, 700, 1200])
def test_the_number_of_rows_is_almost_minimal(low, high):
    lengths = np.random.default_rng(0).integers(low, high, 4000)
    fewest = -(-lengths.sum() // 2048)
    assert pack(lengths, 2048).max() + 1 <= 1.01 * fewest


def test_equal_lengths_leave_only_unavoidable_space():
    assert pack([90] * 45, 2048).max() + 1 == -(-45 // (2048 // 90))


def test_a_pair_that_fills_the_row_exactly():
    assert len(set(pack([1024, 1024, 2048, 1000, 1048], 2048).tolist())) == 3


def test_nothing_to_pack():
    assert pack([], 2048).size == 0


@pytest.mark.parametrize("length", [0, 65])
def test_lengths_that_fit_no_row(length):
    with pytest.raises(ValueError, match="do not fit rows of 64"):
        pack([3, length], 64)
