"""Alignment of faces: the similarity transform that moves landmarks to the places of a template.

Landmarks are points (x, y) in pixels, in the coordinates of boxes: the center of the first pixel is
at (0.5, 0.5).  The five landmarks of a face are the eyes, the tip of the nose and the corners of
the mouth; of each pair, the one further left in the image is first.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops.numerics import as_float32, safe_divide
from jaxdet.types import Array

# The template of ArcFace (Deng et al. 2019, arXiv:1801.07698), published for images of 112 x 112
# pixels and coordinates in which the center of the first pixel is at (0, 0).
_ARCFACE = [
    *([38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366]),
    *([41.5493, 92.3655], [70.7299, 92.2041]),
]
FACE_TEMPLATE = (np.array(_ARCFACE, np.float32) + 0.5) / 112  # [5, 2], fractions of the sides


def similarity_transform(source: Array, target: Array) -> jax.Array:
    """The rotation, scaling and translation that moves points `source` nearest to `target`.

    It minimizes the sum of squared distances of points [..., N, 2], broadcasting, without
    reflections.  Returns matrices [..., 2, 3], to be multiplied by (x, y, 1).  If all points of
    `source` are equal, they move to the mean of `target`, and the scale is 0.  Umeyama 1991,
    doi:10.1109/34.88573, in the closed form for two dimensions.
    """
    chex.assert_shape([source, target], (..., 2))
    source, target = jnp.broadcast_arrays(as_float32(source), as_float32(target))
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    (x, y), (u, v) = (
        jnp.moveaxis(points - mean[..., None, :], -1, 0)
        for points, mean in ((source, source_mean), (target, target_mean))
    )
    norm = (x**2 + y**2).sum(-1)
    cos = safe_divide((x * u + y * v).sum(-1), norm)  # times the scale, as `sin` is
    sin = safe_divide((x * v - y * u).sum(-1), norm)
    rotation = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    moved = (rotation * source_mean[..., None, :]).sum(-1)
    return jnp.concatenate([rotation, (target_mean - moved)[..., None]], -1)


def apply(matrix: Array, points: Array) -> jax.Array:
    """Points [..., N, 2] moved by matrices [..., 2, 3], broadcasting."""
    rotation, offset = matrix[..., None, :, :2], matrix[..., None, :, 2]
    return (rotation * points[..., None, :]).sum(-1) + offset
