from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.check.lengths import histogram, summary

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=300)


@settings(deadline=None)
@given(LENGTHS)
def test_the_summary_is_that_of_the_lengths_one_by_one(lengths: list[int]) -> None:
    found = summary(Counter(lengths))
    assert found is not None
    assert (found.total, found.min, found.max) == (sum(lengths), min(lengths), max(lengths))
    assert found.mean == pytest.approx(np.mean(lengths), abs=0.01)
    for percent in (50, 90, 95, 99):
        assert getattr(found, f"p{percent}") == np.percentile(lengths, percent, method="inverted_cdf")


@settings(deadline=None)
@given(LENGTHS)
def test_every_length_is_in_its_bin(lengths: list[int]) -> None:
    bins = histogram(Counter(lengths))
    assert len(bins) <= 12
    assert all(one.last + 1 == following.first for one, following in pairwise(bins))
    assert [one.examples for one in bins] == [sum(one.first <= n <= one.last for n in lengths) for one in bins]
    assert sum(one.examples for one in bins) == len(lengths)


def test_few_very_long_examples_do_not_widen_the_bins() -> None:
    bins = histogram(Counter(dict.fromkeys(range(40, 100), 100) | {20_000: 1}))
    assert [one.examples for one in bins[:-1]] == [1000] * 6
    assert (bins[-1].last, bins[-1].examples) == (20_000, 1)


def test_one_very_long_example_of_a_few_does_not_widen_the_bins() -> None:
    bins = histogram(Counter(dict.fromkeys(range(41, 81), 1) | {20_000: 1}))
    assert bins[-1].examples <= 3
    assert bins[-1].first <= 81


def test_nothing_has_no_lengths() -> None:
    assert summary(Counter()) is None
    assert histogram(Counter()) == ()
