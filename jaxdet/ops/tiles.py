"""Large images as overlapping tiles: where they lie, how they are cut, and how boxes are merged.

    tiling = Tiling(rows=2, columns=2, overlap=0.2, height=320, width=416)
    parts = cut(image, corners(tiling), (320, 416))  # of an image of `tiling.canvas` pixels

Boxes of all tiles are merged by the functions of `ops.nms`, after `merge_cut` has joined the parts
of objects that a border cuts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.numerics import safe_divide
from jaxdet.types import Array

STRIDE = 32  # pixels; the distance of two tiles is a multiple of it
BORDER = 0.02  # a box is cut if it ends this near an inner border, as a fraction of the tile's side
SAME_OBJECT = 0.5  # IoU of two boxes of one object, in the region that both of their tiles show


class Tiling(NamedTuple):
    """A grid of equal tiles; neighbors overlap by about the fraction `overlap` of their side.

    Without rows and columns, each image has the smallest grid that covers it, see `covering`.
    """

    rows: int | None
    columns: int | None
    overlap: float  # below 1
    height: int  # height and width of a tile in pixels
    width: int

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of the image that the tiles cover."""
        (y, x), rows, columns = self.steps, self.rows or 1, self.columns or 1
        return (rows - 1) * y + self.height, (columns - 1) * x + self.width

    @property
    def steps(self) -> tuple[int, int]:
        """Distances (y, x) of neighboring tiles, multiples of `STRIDE` pixels."""
        sides = (side * (1 - self.overlap) / STRIDE for side in (self.height, self.width))
        y, x = (STRIDE * max(round(side), 1) for side in sides)
        return y, x

    def covering(self, height: int, width: int) -> "Tiling":
        """The grid of an image of `height` x `width` pixels: this one, if it has rows."""
        if self.rows:
            return self
        high, wide = self.extent(np.array([height, width])).tolist()
        y, x = self.steps
        return self._replace(
            rows=(high - self.height) // y + 1, columns=(wide - self.width) // x + 1
        )

    def extent(self, size: Array) -> Array:
        """(height, width) [2] of the smallest grid that covers an image of `size` [2].

        In whole pixels; `rows` and `columns` have no effect.
        """
        tile, step = np.array([self.height, self.width]), np.array(self.steps)
        more = -((tile - size) // step)  # tiles after the first
        return tile + more * (more > 0) * step


def corners(tiling: Tiling) -> np.ndarray:
    """y and x of the upper left corners of the T tiles, [T, 2] int32, row by row."""
    grid = tiling.rows or 1, tiling.columns or 1
    return (np.indices(grid).reshape(2, -1).T * tiling.steps).astype(np.int32)


def tile_boxes(tiling: Tiling) -> np.ndarray:
    """The T tiles as corner boxes [T, 4] float32 in pixels of the image, row by row."""
    low = corners(tiling)[:, ::-1]
    return np.concatenate([low, low + [tiling.width, tiling.height]], 1).astype(np.float32)


def cut(image: Array, places: Array, shape: tuple[int, int]) -> jax.Array:
    """The tiles [T, *shape, C] of an image [H, W, C] at the `corners` places [T, 2]."""
    size = *shape, image.shape[-1]
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (*corner, 0), size))(places)


def shrink(image: Array, extent: Array, shape: tuple[int, int]) -> jax.Array:
    """The first `extent` [2] rows and columns of an image [H, W, C], resized to [*shape, C].

    The result equals `jax.image.resize(image[:rows, :columns], ..., "linear")`, up to rounding, but
    `extent` may be traced.
    """
    pairs = zip(extent, image.shape[:2], shape, strict=True)
    rows, columns = (_averages(*pair) for pair in pairs)
    return jnp.einsum("hy,yxc,wx->hwc", rows, image, columns, precision="highest")


def _averages(extent: Array, length: int, count: int) -> jax.Array:
    """Weights [count, length] by which the first `extent` pixels of a line are resampled."""
    step = extent / count
    centers = (jnp.arange(count) + 0.5) * step - 0.5
    places = jnp.arange(length)[None]
    weights = jax.nn.relu(1 - jnp.abs(places - centers[:, None]) / jnp.maximum(step, 1))
    weights = jnp.where(places < extent, weights, 0)
    return weights / weights.sum(1, keepdims=True)


def is_cut(boxes: Array, tiles: Array, canvas: Array | tuple[int, int]) -> jax.Array:
    """Whether each box [..., 4] ends at an inner border of its tile [..., 4].

    Inner borders are the borders of a tile that are not borders of the image.
    canvas: height and width of the image.
    """
    height, width = canvas
    margin = BORDER * jnp.tile(tiles[..., 2:] - tiles[..., :2], 2)
    edges = jnp.array([0, 0, width, height], jnp.float32)
    inner = tiles != jnp.broadcast_to(edges, tiles.shape)
    return ((jnp.abs(boxes - tiles) <= margin) & inner).any(-1)


def merge_cut(
    boxes: Array, scores: Array, labels: Array, tile: Array, regions: Array, cut: Array
) -> tuple[Array, Array]:
    """Join the parts of objects that borders of tiles cut; returns (boxes [N, 4], scores [N]).

    Two boxes of one class show the same object if, in the region that both of their tiles show,
    their IoU is above `SAME_OBJECT`.  The score of a cut box becomes 0 if another tile shows its
    object whole, with at least half its score.  Other cut boxes of one object are replaced by the
    box around them, so that non-maximum suppression keeps one of them.

    boxes [N, 4], clipped to their tiles; scores, labels [N].
    tile: index of the tile of each box, [N].
    regions: the tiles, [T, 4]; one may be the whole image.
    cut: whether each box is cut, [N].
    """
    inside = box_ops.intersection(boxes[:, None], regions[None])[:, tile]  # of i in the tile of j
    both = box_ops.intersection(boxes[:, None], boxes[None])
    same = safe_divide(both, inside + inside.T - both) > SAME_OBJECT
    same &= (labels[:, None] == labels[None]) & (tile[:, None] != tile[None])
    whole = same & ~cut[None] & (scores[None] >= scores[:, None] / 2)
    scores = jnp.where(cut & whole.any(1), 0.0, scores)
    left = cut & (scores > 0)
    joined = (same & left[:, None] & left[None]) | jnp.eye(len(boxes), dtype=bool)
    for _ in range(len(regions).bit_length()):  # parts of parts
        low = jnp.where(joined[..., None], boxes[None, :, :2], jnp.inf).min(1)
        high = jnp.where(joined[..., None], boxes[None, :, 2:], -jnp.inf).max(1)
        boxes = jnp.concatenate([low, high], -1)
    return boxes, scores
