"""MTCNN, a cascade of three networks that finds faces and five landmarks (Zhang et al. 2016).

    variables = mtcnn.load("package:mtcnn")
    found = mtcnn.detect(variables, image, mtcnn.image_sizes(image.shape[:2]))

P-Net scores all windows of 12 x 12 pixels of an image pyramid, R-Net the windows that remain, and
O-Net the windows that remain then; each of them also corrects the boxes.  arXiv:1604.02878.

The weights of facenet-pytorch, under the MIT license, are read without importing that package.
`detect` gives the same faces as its `MTCNN.detect`, whose boxes are the pixels from x0 to x1, both
included and counted from 1: one pixel more at the left and at the top than the half-open boxes
here.  `data.face_detector` applies `detect` to images of any form and size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet import pickles
from jaxdet.errors import InputError
from jaxdet.models import layers, pretrained
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import nms
from jaxdet.types import Array, Tree

WINDOW, STRIDE = 12, 2  # of P-Net, in pixels of a level of the pyramid
FACTOR = 0.709  # size of a level of the pyramid relative to the level before it, about sqrt(1/2)
MIN_FACE = 20  # pixels
LANDMARKS = 5
NMS_LEVEL, NMS_STAGE = 0.5, 0.7  # overlaps above which boxes are suppressed
BEYOND = 2**15  # a place outside all levels
CHUNK = 32  # windows that R-Net and O-Net score together


class Thresholds(NamedTuple):
    """Lowest scores of the windows that each network keeps."""

    pnet: float = 0.6
    rnet: float = 0.7
    onet: float = 0.7


class Limits(NamedTuple):
    """Largest numbers of windows that each step takes, those with the highest scores."""

    windows: int = 2048  # windows of P-Net that enter non-maximum suppression
    rnet: int = 512  # windows that R-Net scores
    onet: int = 128  # windows that O-Net scores
    faces: int = 64  # faces that `detect` returns


THRESHOLDS, LIMITS = Thresholds(), Limits()


class Faces(NamedTuple):
    """The faces in an image, best first; rows that are not `valid` are zeros."""

    boxes: Array  # [P, 4] in pixels of the image
    scores: Array  # [P] from 0 to 1
    landmarks: Array  # [P, 5, 2]: x and y, in pixels, of eyes, nose and corners of the mouth
    valid: Array  # [P] bool


class StageOutput(NamedTuple):
    """The answer of a network for each of its windows."""

    scores: Array  # [B, ...] probability of a face
    offsets: Array  # [B, ..., 4] of the corners of the box, as fractions of the window's sides
    landmarks: Array  # [B, ..., 10] x of the five, then y, as fractions; [B, ..., 0] without them


class PReLU(nn.Module):
    """ReLU with a slope per channel for negative values (He et al. 2015, arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [..., C] to the same shape."""
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x > 0, x, jnp.broadcast_to(slope, x.shape) * x)


class CascadeNet(layers.ConvModule):
    """Convolutions without padding, each with PReLU and, the first ones, with a max pool.

    widths, kernels: channels and kernel size of each convolution.
    pools: kernel size of each pool; its stride is 2, and incomplete windows count.
    hidden: units of a fully connected layer; without it the network scores all windows of an image.
    landmarks: numbers that describe the landmarks.
    """

    widths: tuple[int, ...] = (10, 16, 32)
    kernels: tuple[int, ...] = (3, 3, 3)
    pools: tuple[int, ...] = (2,)
    hidden: int = 0
    landmarks: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, used: Array | None = None) -> StageOutput:
        """The output for normalized images x [B, H, W, 3]; `train` has no effect.

        used: [h, w] bool, for the outputs [B, h, w, C] of the first convolution: which of them
          count in the first pool; None: all.
        """
        for i, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), 1):
            x = self.conv(x, width, kernel, f"conv{i}", padding=0)
            x = PReLU(name=f"prelu{i}")(x)
            if used is not None and i == 1:
                x = jnp.where(used[None, ..., None], x, x.min())
            if i <= len(self.pools):
                x = _max_pool(x, self.pools[i - 1], f"pool{i}")
        if self.hidden:
            x = x.swapaxes(1, 2).reshape(len(x), -1)  # columns before rows, as published
            x = PReLU(name="hidden_prelu")(nn.Dense(self.hidden, name="hidden")(x))
        scores = self._linear(x, 2, "scores")
        with jax.named_scope("softmax"):
            scores = nn.softmax(scores)[..., 1]
        offsets = self._linear(x, 4, "offsets")
        if not self.landmarks:
            return StageOutput(scores, offsets, jnp.zeros((*scores.shape, 0)))
        return StageOutput(scores, offsets, self._linear(x, self.landmarks, "landmarks"))

    @nn.nowrap
    def _linear(self, x: Array, outputs: int, name: str) -> Array:
        if self.hidden:
            return nn.Dense(outputs, name=name)(x)
        return self.conv(x, outputs, 1, name)


PNet = CascadeNet
RNet = partial(CascadeNet, widths=(28, 48, 64), kernels=(3, 3, 2), pools=(3, 3), hidden=128)
ONet = partial(
    CascadeNet,
    widths=(32, 64, 64, 128),
    kernels=(3, 3, 3, 2),
    pools=(3, 3, 2),
    hidden=256,
    landmarks=2 * LANDMARKS,
)
NETS: dict[str, Callable[..., CascadeNet]] = {"pnet": PNet, "rnet": RNet, "onet": ONet}
SIDES = {"pnet": WINDOW, "rnet": 24, "onet": 48}  # of their windows, in pixels
TORCH_HEADS = {  # of the published weights
    "pnet": {"scores": "conv4_1", "offsets": "conv4_2"},
    "rnet": {
        **{"hidden": "dense4", "hidden_prelu": "prelu4"},
        **{"scores": "dense5_1", "offsets": "dense5_2"},
    },
    "onet": {
        **{"hidden": "dense5", "hidden_prelu": "prelu5"},
        **{"scores": "dense6_1", "offsets": "dense6_2", "landmarks": "dense6_3"},
    },
}


def torch_name(net: str, path: str) -> str:
    """Name of a variable of `NETS[net]` in the published weights.

    `params/hidden_prelu/slope` of rnet is `prelu4.weight`.
    """
    _, layer, leaf = path.split("/")
    return f"{TORCH_HEADS[net].get(layer, layer)}.{'bias' if leaf == 'bias' else 'weight'}"


def load(source: str | Path = "package:mtcnn") -> dict[str, Tree]:
    """The variables of the three networks, {"pnet", "rnet", "onet"}.

    source: a folder with the files pnet.pt, rnet.pt and onet.pt, or "package:mtcnn", the folder in
      the installed package facenet-pytorch.

    Raises InputError if the package or a file is missing, or if the weights do not fit.
    """
    folder = pretrained.fetch_folder(source)
    return {name: _load_net(name, folder / f"{name}.pt") for name in NETS}


def _load_net(name: str, path: Path) -> Tree:
    if not path.is_file():
        raise InputError(f"{path}: no such file; MTCNN needs pnet.pt, rnet.pt and onet.pt")
    images = jax.ShapeDtypeStruct((1, SIDES[name], SIDES[name], 3), "float32")
    shapes = jax.eval_shape(NETS[name]().init, jax.random.key(0), images)
    names = partial(torch_name, name)
    return pretrained.assign_arrays(shapes, pickles.read_arrays(path), names, source=path)


class Pyramid(NamedTuple):
    """The levels of an image pyramid, from fine to coarse, side by side on one canvas."""

    scales: np.ndarray  # [L] float64
    sizes: np.ndarray  # [L, 2] height and width
    corners: np.ndarray  # [L, 2] row and column on the canvas, even
    canvas: tuple[int, int]


def pyramid(height: int, width: int, *, min_face: int = MIN_FACE) -> Pyramid:
    """The pyramid for an image of height x width pixels.

    P-Net's window has `min_face` pixels of the image in the first level.  The last level is the
    smallest that a window fits in; there is none for an image whose shorter side is below
    `min_face`.
    """
    scales, scale = [], WINDOW / min_face
    side = min(height, width) * scale
    while side >= WINDOW:
        scales.append(scale)
        scale, side = scale * FACTOR, side * FACTOR
    sizes = [(int(height * scale + 1), int(width * scale + 1)) for scale in scales]
    corners, canvas = _pack(sizes)
    return Pyramid(
        np.array(scales), np.array(sizes).reshape(-1, 2), np.array(corners).reshape(-1, 2), canvas
    )


def _pack(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(corners, size) of a canvas as wide as the first, largest rectangle, in even numbers.

    Each rectangle is put on the first shelf with room for it, or on a new shelf.
    """
    corners, shelves, bottom = [], [], 0  # shelves: (top, columns that are used)
    width = _even(sizes[0][1]) if sizes else 0
    for height, columns in sizes:
        free = (i for i, (_, start) in enumerate(shelves) if start + columns <= width)
        place = next(free, len(shelves))
        if place == len(shelves):
            shelves.append((bottom, 0))
            bottom += _even(height)
        top, start = shelves[place]
        corners.append((top, start))
        shelves[place] = top, start + _even(columns)
    return corners, (bottom, width)


def _even(number: int) -> int:
    return number + number % 2


def image_sizes(
    size: tuple[int, int], canvas: tuple[int, int] | None = None, *, min_face: int = MIN_FACE
) -> np.ndarray:
    """Height and width of an image, and of each level of its pyramid: [1 + L, 2] int32.

    canvas: height and width of the array that holds the image, by default those of the image; L is
      the number of levels of the canvas.  Missing levels of the image have zeros.
    """
    whole = pyramid(*(canvas or size), min_face=min_face)
    own = pyramid(*size, min_face=min_face).sizes
    sizes = np.zeros((1 + len(whole.sizes), 2), np.int32)
    sizes[0], sizes[1 : 1 + len(own)] = size, own
    return sizes


def detect(
    variables: Mapping[str, Tree],
    image: Array,
    sizes: Array,
    *,
    min_face: int = MIN_FACE,
    thresholds: Thresholds = THRESHOLDS,
    limits: Limits = LIMITS,
) -> Faces:
    """Find the faces in an image; boxes and landmarks are in its pixels.

    variables: of the three networks, see `load`.
    image: [H, W, 3] uint8, RGB; only `sizes[0]` pixels from the upper left corner are used, so that
      images of several sizes can share a compiled program.
    sizes: see `image_sizes`; computed on the host, where products are exact.
    min_face: side of the smallest faces that are found, in pixels.
    """
    chex.assert_shape(image, (None, None, 3))
    table, size = _integral_image(image), sizes[0]
    windows = _propose(variables["pnet"], table, sizes, min_face, thresholds.pnet, limits)
    boxes = _squares(windows.boxes + windows.offsets * jnp.tile(_sides(windows.boxes), 2))
    found = _score("rnet", variables["rnet"], table, size, boxes, windows.valid)
    scores = jnp.where(found.scores > thresholds.rnet, found.scores, 0)
    kept = nms.nms(boxes, scores, iou_threshold=NMS_STAGE, max_detections=limits.onet)
    boxes = _squares(_corrected(kept.boxes, found.offsets[kept.indices]))
    found = _score("onet", variables["onet"], table, size, boxes, kept.valid)
    return _select_faces(boxes, found, thresholds.onet, limits.faces)


def _select_faces(boxes, found: StageOutput, threshold, limit) -> Faces:
    """The faces among the windows of O-Net, whose boxes are [N, 4]."""
    scores = jnp.where(found.scores > threshold, found.scores, 0)
    points = found.landmarks.reshape(-1, 2, LANDMARKS).swapaxes(1, 2)  # x, y
    landmarks = points * (_sides(boxes) + 1)[:, None] + boxes[:, None, :2] - 1
    boxes = _corrected(boxes, found.offsets) - np.array([[1, 1, 0, 0]], np.float32)  # half-open
    # Reversed because, of boxes with equal scores, the original keeps the last.
    boxes, scores, landmarks = boxes[::-1], scores[::-1], landmarks[::-1]
    kept = nms.nms(
        boxes, scores, iou_threshold=NMS_STAGE, max_detections=limit, overlap=box_ops.iom
    )
    landmarks = jnp.where(kept.valid[:, None, None], landmarks[kept.indices], 0)
    return Faces(kept.boxes, kept.scores, landmarks, kept.valid)


class _Windows(NamedTuple):
    """Windows of P-Net, in pixels of the image, both corners included and counted from 1."""

    boxes: Array  # [N, 4]
    scores: Array  # [N]
    offsets: Array  # [N, 4]
    valid: Array  # [N] bool


def _propose(variables, table, sizes, min_face, threshold, limits) -> _Windows:
    """The windows with the highest scores in all levels of the pyramid."""
    levels = pyramid(table.shape[0] - 1, table.shape[1] - 1, min_face=min_face)
    chex.assert_shape(sizes, (1 + len(levels.scales), 2))
    if not len(levels.scales):
        return _Windows(jnp.zeros((1, 4)), jnp.zeros(1), jnp.zeros((1, 4)), jnp.zeros(1, bool))
    level, place = _locate(levels, *map(jnp.arange, levels.canvas))
    found: Any = PNet().apply(
        variables,
        _normalized(_pyramid_pixels(table, sizes, level, place))[None],
        used=_is_inside(level, place, sizes[1:] - 2)[:-2, :-2],
    )
    rows, columns = found.scores.shape[1:]
    level, place = _locate(levels, STRIDE * jnp.arange(rows), STRIDE * jnp.arange(columns))
    place //= STRIDE
    inside = _is_inside(level, place, -(-(sizes[1:] - 2) // STRIDE) - 4)  # after all layers
    scores = jnp.where(inside & (found.scores[0] >= threshold), found.scores[0], 0).ravel()
    scores, index = jax.lax.top_k(scores, min(limits.windows, scores.size))
    level, place = level.ravel()[index], place.reshape(-1, 2)[index]
    first = STRIDE * place[:, ::-1] + 1  # x, y
    corners = jnp.concatenate([first, first + WINDOW - 1], -1)
    boxes = jnp.floor(corners / jnp.float32(levels.scales)[level][:, None])
    count = min(limits.rnet, len(scores))
    kept = nms.nms(boxes, scores, level, iou_threshold=NMS_LEVEL, max_detections=count)
    index = index[kept.indices]
    kept = nms.nms(kept.boxes, kept.scores, iou_threshold=NMS_STAGE, max_detections=count)
    offsets = found.offsets.reshape(-1, 4)[index[kept.indices]]
    return _Windows(kept.boxes, kept.scores, offsets, kept.valid)


def _locate(levels: Pyramid, rows: Array, columns: Array) -> tuple[Array, Array]:
    """The level [H, W] of places on the canvas, and (row, column) [H, W, 2] in that level.

    A place between the levels has level 0, and `BEYOND` as its row and column.
    """
    level = jnp.full((len(rows), len(columns)), -1)
    for i, (low, size) in enumerate(zip(levels.corners, levels.sizes, strict=True)):
        inside = [(low[k] <= x) & (x < low[k] + size[k]) for k, x in enumerate((rows, columns))]
        level = jnp.where(inside[0][:, None] & inside[1][None], i, level)
    place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    place = jnp.where(level[..., None] < 0, BEYOND, place - jnp.asarray(levels.corners)[level])
    return jnp.maximum(level, 0), place


def _is_inside(level: Array, place: Array, sizes: Array) -> jax.Array:
    """Whether places [H, W, 2] are in the used parts of their levels, of `sizes` [L, 2]."""
    return jnp.all(place < sizes[level], -1)


def _pyramid_pixels(table: Array, sizes: Array, level: Array, place: Array) -> jax.Array:
    """The canvas [H, W, 3] of a pyramid; pixels outside its levels have any value."""
    cells = (_cells(place[..., i], 0, sizes[0, i], sizes[1:, i][level]) for i in range(2))
    return _mean(table, *cells)


def _score(name, variables, table, size, boxes, valid) -> StageOutput:
    """The output of R-Net or O-Net for boxes [N, 4], of which the `valid` ones come first.

    Windows are cut out of the image, resized and scored in chunks, as many as the valid boxes need.
    The scores of other boxes, and of boxes outside the image, are 0.
    """
    low = jnp.maximum(jnp.trunc(boxes[:, :2]).astype(jnp.int32), 1) - 1
    high = jnp.minimum(jnp.trunc(boxes[:, 2:]).astype(jnp.int32), size[None, ::-1])
    count, padding = len(boxes), ((0, -len(boxes) % CHUNK), (0, 0))
    corners, lengths = jnp.pad(low, padding), jnp.pad(high - low, padding)

    def score(corners, lengths):
        cut = jax.vmap(partial(_cut, table, side=SIDES[name]))
        return NETS[name]().apply(variables, _normalized(cut(corners, lengths)))

    def fill(i, outputs):
        rows = [jax.lax.dynamic_slice_in_dim(x, i * CHUNK, CHUNK) for x in (corners, lengths)]
        return jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, i * CHUNK, 0),
            outputs,
            score(*rows),
        )

    shapes = jax.eval_shape(score, corners, lengths)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    chunks = -(-valid.sum() // CHUNK)
    found = jax.lax.fori_loop(0, chunks, fill, zeros)
    found = jax.tree.map(lambda x: x[:count], found)
    valid = valid & (high > low).all(-1)
    return found._replace(scores=jnp.where(valid, found.scores, 0))


def _integral_image(image: Array) -> jax.Array:
    """Sums [H + 1, W + 1, C] int32 of the pixels above and to the left of each corner.

    They may overflow; differences of them are exact nevertheless, as long as the sum of an area
    fits into 32 bits.
    """
    sums = image.astype(jnp.int32).cumsum(0).cumsum(1)
    return jnp.pad(sums, ((1, 0), (1, 0), (0, 0)))


def _cut(table: Array, corner: Array, lengths: Array, *, side: int) -> jax.Array:
    """A part of an image, resized to [side, side, C]; `corner` [2] and `lengths` [2] are x, y."""
    columns, rows = (_cells(np.arange(side), corner[i], lengths[i], side) for i in range(2))
    return _mean(table, [ends[:, None] for ends in rows], [ends[None] for ends in columns])


def _cells(i: Array, start: Array | int, length: Array, count: Array | int) -> tuple[Array, Array]:
    """First pixel, and one past the last, of cell `i` of `count` cells that divide part of an axis.

    The part has `length` pixels from `start`.  As in PyTorch's `mode="area"`, the cell has the
    pixels from floor(i length / count) to ceil((i + 1) length / count), counted from `start`.
    """
    count = jnp.maximum(count, 1)
    return start + i * length // count, start - (-(i + 1) * length // count)


def _mean(table: Array, rows: Sequence[Array], columns: Sequence[Array]) -> jax.Array:
    """Mean pixel values [..., C] of areas of an image, from its `_integral_image`.

    rows, columns: first and one past the last, [...], broadcasting; beyond the image, any value.
    """
    (top, bottom), (left, right) = rows, columns
    sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    areas = jnp.maximum((bottom - top) * (right - left), 1)
    return sums.astype(jnp.float32) / areas[..., None]


def _normalized(pixels: Array) -> Array:
    return (pixels - 127.5) / 128


def _max_pool(x: Array, kernel: int, name: str) -> Array:
    """Max pool of stride 2 in which incomplete windows at the end count."""
    ends = [(0, (kernel - side) % STRIDE) for side in x.shape[1:3]]
    with jax.named_scope(name):
        x = jnp.pad(x, [(0, 0), *ends, (0, 0)], constant_values=-jnp.inf)
    return layers.max_pool(x, name, kernel=kernel, stride=STRIDE)


def _sides(boxes: Array) -> Array:
    """Width and height [N, 2] of boxes [N, 4]; one less for boxes whose corners are inclusive."""
    return boxes[:, 2:] - boxes[:, :2]


def _corrected(boxes: Array, offsets: Array) -> Array:
    return boxes + offsets * jnp.tile(_sides(boxes) + 1, 2)


def _squares(boxes: Array) -> Array:
    """Boxes [N, 4] extended to squares with the same centers."""
    sides = _sides(boxes)
    side = sides.max(-1, keepdims=True)
    low = boxes[:, :2] + sides * 0.5 - side * 0.5
    return jnp.concatenate([low, low + side], -1)
