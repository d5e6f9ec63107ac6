import jax
import numpy as np

from jaxdet import rng


def bits(key):
    return np.asarray(jax.random.key_data(key))


def test_fold_in_folds_one_number_after_the_other():
    root = jax.random.key(0)
    expected = jax.random.fold_in(jax.random.fold_in(root, 3), 7)
    np.testing.assert_array_equal(bits(rng.fold_in(root, 3, 7)), bits(expected))
    assert (bits(rng.fold_in(root, 3, 7)) != bits(rng.fold_in(root, 7, 3))).any()


def test_row_keys_depend_on_the_row_number_alone():
    root = jax.random.key(1)
    keys = rng.row_keys(root, np.array([5, 0, 5]))
    np.testing.assert_array_equal(bits(keys[0]), bits(keys[2]))
    np.testing.assert_array_equal(bits(keys[0]), bits(jax.random.fold_in(root, 5)))
    assert (bits(keys[0]) != bits(keys[1])).any()


def test_fold_in_each_folds_into_every_key():
    keys = rng.row_keys(jax.random.key(1), np.array([5, 0]))
    for key, folded in zip(keys, rng.fold_in_each(keys, 3), strict=True):
        np.testing.assert_array_equal(bits(folded), bits(jax.random.fold_in(key, 3)))


def test_purposes_differ():
    assert len({rng.INIT, rng.AUGMENT, rng.DROPOUT, rng.EVALUATE}) == 4
