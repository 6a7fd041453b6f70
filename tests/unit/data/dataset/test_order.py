from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.dataset.order import Order, SetShare, share, shares
from cpmbee_job.errors import DataError


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 200),
    global_batch_size=st.integers(1, 50),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=10),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**70),
    epoch=st.integers(1, 5),
)
def test_every_row_counts_once_per_epoch_for_any_world_size(
    num_rows, global_batch_size, worlds, batch_size, seed, epoch
):
    order = Order(num_rows, global_batch_size, seed)
    seen = []
    for number in range(order.steps_per_epoch):
        found_epoch, rows = order.step((epoch - 1) * order.steps_per_epoch + number + 1)
        assert found_epoch == epoch
        world_size = worlds[number % len(worlds)]  # the world changes in the middle of the epoch
        shares = [share(rows, rank, world_size, batch_size) for rank in range(world_size)]
        counts = [sum(int(batch.weights.sum()) for batch in own) for own in shares]
        assert max(counts) - min(counts) <= 1
        assert len({len(own) for own in shares}) == 1
        assert all(1 <= batch.rows.size == batch.weights.size <= batch_size for own in shares for batch in own)
        seen += [row for own in shares for batch in own for row in batch.rows[batch.weights].tolist()]
    assert sorted(seen) == list(range(num_rows))


def test_the_order_never_changes():
    order = Order(10, 4, seed=1234)
    steps = [order.step(step)[1].tolist() for step in (1, 2, 3, 4)]
    assert steps == [[8, 3, 6, 7], [0, 5, 4, 9], [1, 2], [3, 4, 6, 0]]


def test_epochs_and_seeds_differ():
    order, other = Order(100, 100, seed=1), Order(100, 100, seed=2)
    assert order.step(1)[1].tolist() != order.step(2)[1].tolist()
    assert order.step(1)[1].tolist() != other.step(1)[1].tolist()


def test_any_step_can_be_asked_first():
    straight = Order(50, 7, seed=3)
    steps = [straight.step(step)[1].tolist() for step in range(1, 25)]
    jumping = Order(50, 7, seed=3)
    assert [jumping.step(step)[1].tolist() for step in (24, 3, 17)] == [steps[23], steps[2], steps[16]]


def test_the_last_step_is_short():
    order = Order(10, 4, seed=0)
    assert order.steps_per_epoch == 3
    assert [order.step(step)[1].size for step in (1, 2, 3, 4)] == [4, 4, 2, 4]


def test_drop_last_drops_the_short_step():
    order = Order(10, 4, seed=0, drop_last=True)
    assert order.steps_per_epoch == 2
    assert [order.step(step)[0] for step in (1, 2, 3)] == [1, 1, 2]


def test_drop_last_with_too_few_rows():
    with pytest.raises(DataError, match="3 packed rows, a step takes 4"):
        Order(3, 4, seed=0, drop_last=True)


def test_no_rows():
    with pytest.raises(DataError, match="no packed rows"):
        Order(0, 4, seed=0)


def test_more_ranks_than_rows():
    (first,), (second,), (third,) = (share(np.array([5]), rank, 3, 2) for rank in range(3))
    assert first.rows.tolist() == second.rows.tolist() == third.rows.tolist() == [5]
    assert sorted(batch.weights.tolist() for batch in (first, second, third)) == [[False], [False], [True]]


@settings(deadline=None)
@given(
    sets=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9), st.floats(0.01, 100)), min_size=1, max_size=5),
    global_batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_mixture_reads_every_set_evenly_in_proportion_to_its_weight(sets, global_batch_size, seed):
    num_rows = [rows for rows, _, _ in sets]
    num_examples = [rows * examples for rows, examples, _ in sets]
    weights = [weight for _, _, weight in sets]
    try:
        mixture = shares(num_rows, num_examples, weights)
    except DataError as error:
        assert "leaves the dataset none of" in str(error)  # noqa: PT017 (one of both, depending on the draw)
        return
    per_epoch = [part.rows_per_epoch for part in mixture]
    assert sum(per_epoch) == sum(num_rows)
    in_proportion = [w * rows / examples for rows, examples, w in zip(num_rows, num_examples, weights, strict=True)]
    exact = [part / sum(in_proportion) * sum(num_rows) for part in in_proportion]
    assert all(abs(part - wanted) < 1 + 1e-6 for part, wanted in zip(per_epoch, exact, strict=True))

    order = Order(sum(num_rows), global_batch_size, seed, mixture=mixture)
    bounds = np.cumsum([0, *num_rows])
    seen: list[int] = []
    for epoch in range(1, 4):
        first = (epoch - 1) * order.steps_per_epoch
        steps = [order.step(first + number + 1)[1] for number in range(order.steps_per_epoch)]
        rows = np.concatenate(steps)
        seen += rows.tolist()
        assert np.histogram(rows, bounds)[0].tolist() == per_epoch
    times = np.bincount(seen, minlength=sum(num_rows))
    for start, end in pairwise(bounds):
        assert times[start:end].max() - times[start:end].min() <= 1, "no row of a set comes twice before all came once"


def test_the_order_of_a_mixture_never_changes():
    order = Order(7, 4, seed=1234, mixture=(SetShare(4, 2), SetShare(3, 5)))
    straight = [order.step(step)[1].tolist() for step in (1, 2, 3, 4)]
    assert straight == [[6, 6, 1, 5], [4, 0, 5], [5, 6, 5, 3], [4, 4, 2]]
    assert [Order(7, 4, 1234, mixture=order.mixture).step(step)[1].tolist() for step in (4, 1)] == [
        straight[3],
        straight[0],
    ]


def test_a_weight_that_leaves_a_set_without_a_row():
    with pytest.raises(DataError, match=r"data.train.1.weight: leaves .* \(got 0.001\)"):
        shares([100, 100], [900, 900], [1, 0.001])
