import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.data import sampler

sizes = {"count": st.integers(1, 60), "batch": st.integers(1, 25)}


@given(**sizes)
def test_an_epoch_has_every_record_and_only_full_batches(count, batch):
    rows = sampler.shuffled_batches(0, 0, count, batch)
    assert rows.shape == (-(-count // batch), batch)
    assert set(rows.ravel()) == set(range(count))
    np.testing.assert_array_equal(np.sort(rows.ravel()[:count]), np.arange(count))


def test_the_last_batch_is_filled_with_the_first_records():
    rows = sampler.shuffled_batches(0, 0, 5, 4).ravel()
    np.testing.assert_array_equal(rows[5:], rows[:3])


def test_the_order_depends_on_seed_and_epoch_alone():
    first = sampler.shuffled_batches(1, 2, 50, 10)
    np.testing.assert_array_equal(first, sampler.shuffled_batches(1, 2, 50, 10))
    assert (first != sampler.shuffled_batches(1, 3, 50, 10)).any()
    assert (first != sampler.shuffled_batches(2, 2, 50, 10)).any()


@given(**sizes)
def test_evaluation_batches_have_every_record_once_and_mask_the_padding(count, batch):
    rows, real = sampler.eval_batches(count, batch)
    assert rows.shape == real.shape == (-(-count // batch), batch)
    np.testing.assert_array_equal(rows[real == 1], np.arange(count))
    assert real.sum() == count


def test_gather_takes_rows_of_every_array():
    data = {"a": np.arange(5) * 10, "b": np.arange(10).reshape(5, 2)}
    batch = sampler.gather(data, np.array([3, 0]))
    np.testing.assert_array_equal(batch["a"], [30, 0])
    np.testing.assert_array_equal(batch["b"], [[6, 7], [0, 1]])


def test_gather_without_arrays_returns_the_batch():
    rows = {"a": np.ones(3)}
    assert sampler.gather({}, rows) is rows


def test_sizes_are_uniform_and_depend_on_seed_and_step_alone():
    drawn = [sampler.draw_size(0, step, 3) for step in range(300)]
    assert drawn == [sampler.draw_size(0, step, 3) for step in range(300)]
    assert drawn != [sampler.draw_size(1, step, 3) for step in range(300)]
    assert np.bincount(drawn).min() > 70 and len(np.bincount(drawn)) == 3
    assert {sampler.draw_size(0, step, 1) for step in range(9)} == {0}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_pk_batches_hold_adjacent_images_of_one_class(labels, each, groups):
    labels, batch = np.array(labels), each * groups
    order = sampler.pk_sampler(labels, each)
    rows = order(3, 1, len(labels), batch)
    assert rows.shape == (-(-len(labels) // batch), batch)
    for group in rows.reshape(-1, each):
        assert len(set(labels[group])) == 1
        own = np.flatnonzero(labels == labels[group[0]])
        assert len(set(group)) == min(each, len(own))
    np.testing.assert_array_equal(rows, order(3, 1, len(labels), batch))


def test_pk_batches_hold_every_record_where_the_groups_fit():
    labels = np.repeat(np.arange(6), 4)
    order = sampler.pk_sampler(labels, 2)
    first = order(0, 0, 24, 8)
    assert sorted(first.ravel()) == list(range(24))
    assert (first != order(0, 1, 24, 8)).any() and (first != order(1, 0, 24, 8)).any()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_groups_of_each_class_are_spread_evenly_over_batches(labels, each, groups):
    labels, batch = np.array(labels), each * groups
    order = sampler.pk_sampler(labels, each)
    for epoch in range(4):
        rows = order(5, epoch, len(labels), batch)
        owners = labels[rows[:, ::each]]  # [steps, groups]
        for label in set(labels):
            counts = (owners == label).sum(1)
            assert counts.max() - counts.min() <= 1
            assert counts.max() <= -(-(owners == label).sum() // len(rows))


def test_a_batch_has_as_many_identities_as_groups():
    """Eight identities with ten images each, where a shuffle alone gives one of them two groups."""
    labels = np.repeat(np.arange(8), 10)
    order = sampler.pk_sampler(labels, 2)
    seen = []
    for epoch in range(5):
        rows = order(0, epoch, 80, 8)
        assert sorted(rows.ravel()) == list(range(80))
        seen += [frozenset(owners) for owners in labels[rows[:, ::2]]]
    assert {len(labels) for labels in seen} == {4}
    assert len({*seen}) > 20  # their combination changes
