"""Embeddings: unit length, likeness, and whom of known people an unknown image shows.

An embedding is a vector [D]; functions of one broadcast over `[..., D]`: all pairs are `a[:, None],
b[None]`, one pair a row is `a, b`.  Computed in float32 at least, whatever the vectors are stored
in; vectors of zeros have finite gradients.
"""

from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxdet.ops.numerics import as_float32

Metric = Literal["cosine", "euclidean"]
THRESHOLD = 0.4  # cosine from which seed 004 takes an unknown for a known identity
CHUNK = 1024  # images that are worked on at a time: on a CPU faster than 4096, .33 to .39 s


def l2_normalize(x):
    """Vectors [..., D] at length 1; one of zeros stays so, with gradient 0.

    Neither large nor small numbers overflow: the largest of a vector is divided out first.
    """
    x = as_float32(x)
    largest = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    lengths = norm(x)[..., None]
    return x / jnp.where(lengths > 0, lengths, 1)


def norm(x):
    """Euclidean length of vectors [..., D]: [...]; of zeros it is 0, with gradient 0."""
    squared = (as_float32(x) ** 2).sum(-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def cosine(a, b):
    """Cosine of the angle between vectors a and b [..., D], broadcasting, in [-1, 1] to rounding.

    A vector of zeros gives 0 with any other.
    """
    return (l2_normalize(a) * l2_normalize(b)).sum(-1)


def distance(a, b):
    """Euclidean distance of vectors a and b [..., D], broadcasting; equal ones give 0, gradient 0.

    Between vectors of length 1 it is in [0, 2]: the square root of 2 - 2 `cosine`.
    """
    return norm(as_float32(a) - as_float32(b))


def pairwise_cosine(a, b):
    """`cosine` of all pairs of vectors a [N, D] and b [M, D], [N, M]: a product of matrices."""
    return pairwise_dot(l2_normalize(a), l2_normalize(b))


def pairwise_dot(a, b):
    """Scalar products of all pairs of vectors a [N, D] and b [M, D]: [N, M].

    In full float32, which GPUs keep only where told to.
    """
    return jnp.matmul(as_float32(a), as_float32(b).T, precision="highest")


@partial(jax.jit, static_argnames=("kind", "chunk"))
def similarity(unknown, known, *, kind: Metric = "cosine", chunk=CHUNK):
    """How alike each of `unknown` [N, D] and each of `known` [M, D] are: [N, M], more is likelier.

    kind: `cosine`, or `euclidean` for the distance with a minus, in the units of the vectors; it
    comes of squared lengths, and is off by up to 0.001 of a length where vectors all but meet.
    chunk: how many of `unknown` are worked on at a time, so that hardly more memory is wanted than
    arguments and result have: 0.41 GB for 100,000 x 1,000 of 512 numbers.
    """
    chex.assert_rank([unknown, known], 2)
    chex.assert_equal_shape([unknown, known], dims=1)
    count, size = len(unknown), min(chunk, len(unknown))
    like = {"cosine": pairwise_cosine, "euclidean": _nearness}[kind]

    def fill(i, table):
        start = jnp.minimum(i * size, count - size)  # the last chunk overlaps the one before it
        rows = jax.lax.dynamic_slice_in_dim(unknown, start, size)
        return jax.lax.dynamic_update_slice_in_dim(table, like(rows, known), start, 0)

    table = jnp.zeros((count, len(known)), jnp.promote_types(unknown.dtype, jnp.float32))
    return jax.lax.fori_loop(0, -(-count // size) if count else 0, fill, table)


@partial(jax.jit, static_argnames=("identities", "join"))
def identify(
    similarities, owner, identities, *, join: Literal["max", "mean"] = "max", threshold=THRESHOLD
):
    """The identity that each unknown image is most like, or -1 for none, and how like: [N], [N].

    similarities: [N, M] to M known images, whose identities, below `identities`, are `owner` [M];
    any other number, such as -1, marks a column that only pads.  join: what counts of several
    images of one identity.  threshold: similarity from which an unknown is taken for the best.
    Of equally good identities it is the first; where nobody is known, -1 and minus infinity.
    """
    chex.assert_shape(similarities, (None, *owner.shape))
    owner = jnp.where(owner < 0, identities, owner)  # out of bounds: left out by segments
    images = jax.ops.segment_sum(jnp.ones(len(owner)), owner, identities)
    ways = {"max": jax.ops.segment_max, "mean": jax.ops.segment_sum}

    def one(row):
        joined = ways[join](as_float32(row), owner, identities)  # [identities]
        joined = joined / jnp.maximum(images, 1) if join == "mean" else joined
        joined = jnp.append(jnp.where(images > 0, joined, -jnp.inf), -jnp.inf)  # and nobody
        best, score = joined.argmax(), joined.max()
        return jnp.where((score >= threshold) & (score > -jnp.inf), best, -1), score

    return jax.lax.map(one, similarities, batch_size=min(CHUNK, len(similarities)) or None)


def _nearness(a, b):
    """Distances [N, M] of vectors a [N, D] and b [M, D], with a minus."""
    a, b = as_float32(a), as_float32(b)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * pairwise_dot(a, b)
    return -jnp.sqrt(jax.nn.relu(squared))
