"""Which records are in which batch: functions of the seed and the epoch, without any state."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.types import Array

BatchOrder = Callable[[int, int, int, int], np.ndarray]  # seed, epoch, count, batch -> [steps, B]


def shuffled_batches(seed: int, epoch: int, count: int, batch: int) -> np.ndarray:
    """Indices of records for one epoch of training, [steps, batch] int32.

    The number of steps is `ceil(count / batch)`.

    Every batch is full: the last one is filled up with the first records of the epoch, and a set
    smaller than the batch is repeated.
    """
    rows = np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)
    steps = -(-count // batch)
    return np.resize(rows, (steps, batch))


def repeat_factor_sampler(label_sets: Sequence[np.ndarray], balance_below: float) -> BatchOrder:
    """Repeat-factor sampling: images with rare classes occur more often in an epoch.

    The factor of a class that a fraction f of the images have is max(1, sqrt(balance_below / f)),
    and the factor of an image is the largest factor of its classes, 1 without objects.  It is the
    expected number of times that the image is in the list from which an epoch is drawn.  An epoch
    has as many batches as with `shuffled_batches`, so frequent images are left out for rare ones.

    label_sets: labels of the objects of each image, N arrays.
    Gupta et al. 2019, arXiv:1908.03195.
    """
    factors = repeat_factors(label_sets, balance_below)

    def order(seed: int, epoch: int, count: int, batch: int) -> np.ndarray:
        random, whole = np.random.default_rng((seed, epoch)), factors.astype(int)
        times = whole + (random.random(len(factors)) < factors - whole)
        rows = random.permutation(np.repeat(np.arange(len(factors)), times)).astype(np.int32)
        return np.resize(rows, (-(-count // batch), batch))

    return order


def repeat_factors(label_sets: Sequence[np.ndarray], balance_below: float) -> np.ndarray:
    """The factor [N] of each image, at least 1; see `repeat_factor_sampler`."""
    owner = np.repeat(np.arange(len(label_sets)), [*map(len, label_sets)])
    pairs = np.stack([owner, np.concatenate([*label_sets, np.zeros(0)])], 1).astype(int)
    owner, labels = np.unique(pairs, axis=0).T  # each class of each image once
    fraction = np.bincount(labels) / len(label_sets)
    factors = np.ones(len(label_sets))
    np.maximum.at(factors, owner, np.sqrt(balance_below / fraction[labels]))
    return factors


def pk_sampler(labels: np.ndarray, samples_per_class: int) -> BatchOrder:
    """PK sampling: batches that consist of groups of `samples_per_class` images of one class.

    Returns a function that orders an epoch.  It shuffles the images of each class, according to
    `labels [N]`, and splits them into groups; the last group is filled up with images of the same
    class.  If there are more groups than an epoch holds, some are left out at random; if there
    are fewer, some are repeated.  A class with n groups in an epoch has at most `ceil(n / steps)`
    groups in a batch: the groups of a batch are of different classes, unless a class has more
    groups than the epoch has steps.  The batch size must be a multiple of `samples_per_class`.
    Hermans et al. 2017, arXiv:1703.07737.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def order(seed: int, epoch: int, count: int, batch: int) -> np.ndarray:
        random, steps = np.random.default_rng((seed, epoch)), -(-count // batch)
        groups = [
            np.resize(
                random.permutation(own), (-(-len(own) // samples_per_class), samples_per_class)
            )
            for own in members
        ]
        owner = np.repeat(np.arange(len(groups)), [*map(len, groups)])
        kept = np.resize(random.permutation(len(owner)), steps * (batch // samples_per_class))
        classes = np.concatenate([*_spread_classes(np.bincount(owner[kept]), steps, random)])
        placed = np.empty_like(kept)  # the group at each place, of the class given by `classes`
        placed[np.argsort(classes, kind="stable")] = kept[np.argsort(owner[kept], kind="stable")]
        return np.concatenate(groups)[placed].reshape(steps, batch).astype(np.int32)

    return order


def _spread_classes(
    counts: np.ndarray, steps: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the classes of the groups in each step; spreads all `counts[k]` groups evenly."""
    each = counts.sum() // steps
    for remaining in range(steps, 0, -1):
        now = counts // remaining
        more = random.permutation(np.flatnonzero(counts % remaining))
        now[more[: each - now.sum()]] += 1
        counts = counts - now
        yield random.permutation(np.repeat(np.arange(len(now)), now))


def draw_size(seed: int, step: int, count: int) -> int:
    """Draw the index of the image size to be used at a step, uniformly from 0..count - 1."""
    return int(np.random.default_rng((seed, step)).integers(count)) if count > 1 else 0


def eval_batches(count: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """All records in order: (indices [steps, batch] int32, mask [steps, batch] float32).

    The last batch is filled up with record 0; the mask is 0 there, and 1 elsewhere.
    """
    steps = -(-count // batch)
    places = np.arange(steps * batch).reshape(steps, batch)
    real = places < count
    return np.where(real, places, 0).astype(np.int32), real.astype(np.float32)


def gather(data: dict[str, Array], rows: Any) -> Any:
    """Gather the batch at indices `rows [B]` from the arrays of a data set on the device.

    If `data` is empty, as for streamed data, `rows` is the batch itself and is returned.
    """
    if not data:
        return rows
    return jax.tree.map(lambda column: jnp.take(column, rows, axis=0), data)
