"""Random keys as a `fold_in` chain: purpose, step, and the row's place in the global batch.

A key is never both split and folded: `split(key, n)[i]` is `fold_in(key, i)`, bit for bit.
"""

import jax

INIT, AUGMENT, DROPOUT, EVALUATE = range(4)  # purposes: the first link of every chain


def fold_in(key, *links):
    """Fold integers (traced or not) into `key`, one after the other."""
    for link in links:
        key = jax.random.fold_in(key, link)
    return key


def row_keys(key, places):
    """One key for each integer of `places [B]`; the same place gives the same key. Returns [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)


def fold_in_each(keys, link):
    """Keys [B] with the integer `link` folded into each."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, link)
