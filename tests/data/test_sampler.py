import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet import configs
from jaxdet.configs import detect
from jaxdet.data import sampler
from tests import datasets

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


SETS = [np.array(own, int) for own in ([0, 0], [0, 1], [0], [], [0], [0], [2, 2], [0, 1])]


def test_repeat_factors_are_those_of_the_rarest_class():
    # 6 of 8 images have class 0, 2 have class 1, and 1 has class 2.
    rare, rarest = (0.5 / 0.25) ** 0.5, (0.5 / 0.125) ** 0.5
    factors = sampler.repeat_factors(SETS, 0.5)
    np.testing.assert_allclose(factors, [1, rare, 1, 1, 1, 1, rarest, rare])
    assert (sampler.repeat_factors(SETS, 0.1) == 1).all()
    np.testing.assert_array_equal(sampler.repeat_factors([np.zeros(0, int)] * 3, 1), 1)


def test_balanced_epochs_repeat_images_as_often_as_their_factors_say():
    order, factors = sampler.repeat_factor_sampler(SETS, 0.5), sampler.repeat_factors(SETS, 0.5)
    epochs = [order(3, epoch, 8, 3) for epoch in range(400)]
    assert all(rows.shape == (3, 3) and rows.dtype == np.int32 for rows in epochs)
    counts = np.mean([np.bincount(rows.ravel(), minlength=8) for rows in epochs], 0)
    np.testing.assert_allclose(counts / counts.sum(), factors / factors.sum(), atol=0.01)
    np.testing.assert_array_equal(order(3, 5, 8, 3), epochs[5])  # of seed and epoch alone
    assert (order(4, 5, 8, 3) != epochs[5]).any()


def test_balanced_batches_are_the_same_from_memory_and_from_a_stream(tmp_path):
    pytest.importorskip("grain")
    datasets.write_coco(tmp_path / "set")
    orders = []
    for stream in (False, True):
        options = {"root": str(tmp_path / "set"), "size": (32, 32), "stream": stream}
        experiment = configs.build("detect", detect.Config(sampling="balanced", **options))
        source = experiment.splits["train"]
        assert [labels.tolist() for labels in source.label_sets] == [[0, 1], [1], []]
        orders.append(experiment.batch_order(source)(0, 1, 3, 8))
    np.testing.assert_array_equal(*orders)
    left = source.leaving_out([0])
    assert [labels.tolist() for labels in left.label_sets] == [[1], []]
    assert set(experiment.batch_order(left)(0, 1, 2, 8).ravel()) <= {0, 1}
