"""Which rows make up a batch: a function of seed and epoch, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np


def order(seed, epoch, count, batch):
    """Row indices of one training epoch, [steps, batch] int32, shuffled by seed and epoch.

    Every batch is full: the tail wraps round to the epoch's first rows, and a set smaller than
    the batch repeats itself.  `steps` is `ceil(count / batch)`.
    """
    rows = np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)
    steps = -(-count // batch)
    return np.resize(rows, (steps, batch))


def grouped(labels, each):
    """An `order` whose batches have `each` images in a row of one class, as pair losses want them.

    labels: [N].  The images of every class are cut into groups of `each`, the last of them filled
    from its first, and the groups are shuffled: all by seed and epoch.
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def made(seed, epoch, count, batch):
        random = np.random.default_rng((seed, epoch))
        cut = [np.resize(random.permutation(own), (-(-len(own) // each), each)) for own in places]
        groups = np.concatenate(cut)[random.permutation(sum(map(len, cut)))]
        return np.resize(groups, (-(-count // batch), batch)).astype(np.int32)

    return made


def size(seed, step, count):
    """Which of `count` sizes of images a step has, from 0; all are as likely."""
    return int(np.random.default_rng((seed, step)).integers(count)) if count > 1 else 0


def padded(count, batch):
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
