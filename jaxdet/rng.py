"""Random keys derived by `fold_in` from the purpose, the step, and the row in the global batch.

A key is either folded or split, never both, because `split(key, n)[i]` equals `fold_in(key, i)` bit
for bit.
"""

import jax

from jaxdet.types import Array

INIT, AUGMENT, DROPOUT, EVALUATE = range(4)  # purposes, which are folded into a key first


def fold_in(key: jax.Array, *data: int | Array) -> jax.Array:
    """Fold integers, traced or not, into a key, one after the other."""
    for number in data:
        key = jax.random.fold_in(key, number)
    return key


def row_keys(key: jax.Array, rows: Array) -> jax.Array:
    """Keys [B], each the fold of one integer of `rows` [B] into `key`.

    Equal integers give equal keys.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def fold_in_each(keys: jax.Array, data: int | Array) -> jax.Array:
    """Fold the same integer into each of the keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)
