import jax
import numpy as np

from jaxdet import rng


def bits(key):
    return np.asarray(jax.random.key_data(key))


def test_a_chain_folds_link_after_link():
    root = jax.random.key(0)
    expected = jax.random.fold_in(jax.random.fold_in(root, 3), 7)
    np.testing.assert_array_equal(bits(rng.fold_in(root, 3, 7)), bits(expected))
    assert (bits(rng.fold_in(root, 3, 7)) != bits(rng.fold_in(root, 7, 3))).any()


def test_a_row_has_the_key_of_its_place():
    root = jax.random.key(1)
    rows = rng.row_keys(root, np.array([5, 0, 5]))
    np.testing.assert_array_equal(bits(rows[0]), bits(rows[2]))
    np.testing.assert_array_equal(bits(rows[0]), bits(jax.random.fold_in(root, 5)))
    assert (bits(rows[0]) != bits(rows[1])).any()


def test_purposes_differ():
    assert len({rng.INIT, rng.AUGMENT, rng.DROPOUT, rng.EVALUATE}) == 4
