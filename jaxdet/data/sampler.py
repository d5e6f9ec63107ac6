"""Which rows make up a batch: a function of seed and epoch, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np


def shuffled_batches(seed, epoch, count, batch):
    """Row indices of one training epoch, [steps, batch] int32, shuffled by seed and epoch.

    Every batch is full: the tail wraps round to the epoch's first rows, and a set smaller than
    the batch repeats itself.  `steps` is `ceil(count / batch)`.
    """
    rows = np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)
    steps = -(-count // batch)
    return np.resize(rows, (steps, batch))


def pk_sampler(labels, each):
    """An `order` whose batches have `each` images in a row of one class, as pair losses want them.

    labels: [N].  The images of every class are cut into groups of `each`, the last of them filled
    from its first.  Where they are more than the steps of an epoch take, some drawn ones are left
    out, where fewer, some come twice.  A class with n groups has at most ceil(n / steps) in a
    batch: all groups of a batch are of different classes where no class has more groups than there
    are steps.  All by seed and epoch; batch is a multiple of `each`.
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def made(seed, epoch, count, batch):
        random, steps = np.random.default_rng((seed, epoch)), -(-count // batch)
        cut = [np.resize(random.permutation(own), (-(-len(own) // each), each)) for own in places]
        owner = np.repeat(np.arange(len(cut)), [*map(len, cut)])
        kept = np.resize(random.permutation(len(owner)), steps * (batch // each))
        wanted = np.concatenate([*_spread(np.bincount(owner[kept]), steps, random)])
        order = np.empty_like(kept)  # the groups kept, a class after the other, to where it is
        order[np.argsort(wanted, kind="stable")] = kept[np.argsort(owner[kept], kind="stable")]
        return np.concatenate(cut)[order].reshape(steps, batch).astype(np.int32)

    return made


def _spread(left, steps, random):
    """Classes [left.sum() / steps] of each step: every class `left` times, spread evenly."""
    each = left.sum() // steps
    for remaining in range(steps, 0, -1):
        now = left // remaining
        more = random.permutation(np.flatnonzero(left % remaining))
        now[more[: each - now.sum()]] += 1
        left = left - now
        yield random.permutation(np.repeat(np.arange(len(now)), now))


def draw_size(seed, step, count):
    """Which of `count` sizes of images a step has, from 0; all are as likely."""
    return int(np.random.default_rng((seed, step)).integers(count)) if count > 1 else 0


def eval_batches(count, batch):
    """All rows in turn with a mask: indices [steps, batch] int32, real [steps, batch] float32.

    The last batch is filled with row 0, marked `real = 0`.
    """
    steps = -(-count // batch)
    places = np.arange(steps * batch).reshape(steps, batch)
    real = places < count
    return np.where(real, places, 0).astype(np.int32), real.astype(np.float32)


def gather(data, rows):
    """The batch at `rows [B]` of arrays on the device; without those `rows` is the batch."""
    if not data:
        return rows
    return jax.tree.map(lambda column: jnp.take(column, rows, axis=0), data)
