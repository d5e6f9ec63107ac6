"""Detection: any number of boxes per image, predicted by the cells of a feature pyramid."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdet import rng
from jaxdet.data.normalize import IMAGENET, Normalization, normalize
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import average_precision, operating_point
from jaxdet.metrics import detection as detection_metrics
from jaxdet.models.detector import DetectorOutput
from jaxdet.ops import anchors, assign, augment, boxes, nms, tiles
from jaxdet.tasks.base import forward, real_rows
from jaxdet.tasks.class_encoding import ZEROS, ClassEncoding
from jaxdet.training import parallel
from jaxdet.types import Array, Batch, StepContext, Tree

STRIDE = 32  # pixels per cell of the coarsest level
TRUTH = (  # keys of a batch that only evaluation reads
    *("true_boxes", "true_labels", "true_valid", "true_crowd", "true_area", "size"),
)
TILE = 100  # folded into a row's key to choose a tile; `augmentation.pipeline` folds lower numbers
TILES_AT_ONCE = 16  # largest number of tiles of each image in one call of the network
PRE_NMS_TOP_K = 1000  # number of (cell, class) pairs, highest scores first, for NMS, as in TOOD

Assigner = Callable[..., assign.Targets]


class View(NamedTuple):
    """A view of an image for test-time augmentation."""

    scale: float = 1.0  # factor of the sides, which are rounded to multiples of `STRIDE` pixels
    mirrored: bool = False


SINGLE_VIEW = (View(),)
TTA = tuple(View(scale, mirrored) for scale in (1.0, 0.83, 1.17) for mirrored in (False, True))


@dataclass(frozen=True)
class DetectionTask:
    """Detection with dense targets.

    net: network from images [B, H, W, C] to a `DetectorOutput`.
    classes: names of the classes.
    transform: function (keys [B], batch, context) -> batch that augments training images with their
      boxes.
    assigner: function (epoch, points, anchors, scores, boxes, true boxes, labels, valid) ->
      `Targets` of one image; see `make_assigner`.
    suppress: function (boxes, scores, labels) -> `nms.Detections` of one image.
    box_loss: function (boxes, true boxes) -> loss of each box.
    offset_loss: whether `box_loss` compares offsets from the anchors instead of boxes.
    encoding: how background is encoded.
    class_weights: in training, factors of the losses of cells that are assigned to an object of
      each class; (): none.
    views: views of an image from which the network predicts; NMS takes the boxes of all views.

    tiling: grid of tiles into which images are cut; an image has the size of the grid.  The network
      predicts from every tile and, if there are several, from the whole image at the size of a
      tile; in training, it sees a random tile of each image.  Without `tiling.rows`, an image in
      the upper left corner of a larger array has only the tiles that cover it.  None: images are
      not cut.

    `context.hparams` holds the weight of each loss term, such as `classification_weight`.
    """

    net: nn.Module
    classes: tuple[str, ...]
    transform: Callable
    assigner: Assigner
    suppress: Callable[..., nms.Detections]
    box_loss: Callable[[Array, Array], Array] = box_losses.ciou
    offset_loss: bool = False
    encoding: ClassEncoding = ZEROS
    normalization: Normalization = IMAGENET
    views: tuple[View, ...] = SINGLE_VIEW
    class_weights: tuple[float, ...] = ()
    tiling: tiles.Tiling | None = None

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """The batch with images scaled to [0, 1].

        In training, images and boxes are augmented, and resized by the factor `context.scale`.
        """
        batch = batch | {"image": batch["image"] / jnp.float32(255)}
        if not context.train:
            return batch
        if self.tiling:
            batch = self._random_tiles(rng.fold_in_each(keys, TILE), batch, self.tiling)
        return _rescale(self.transform(keys, batch, context), context.scale)

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """This device's contribution to the loss and to its terms.

        A loss term is a sum over cells, divided by max(1, sum of the target scores); class weights
        multiply both sums.  The term `positives` is the mean number of positive cells per image.
        """
        images = normalize(batch["image"], self.normalization)
        output, stats = forward(key, self.net, variables, images, context)
        targets = self._targets(output, batch, context)
        real = batch["real"]
        scores = targets.scores * real[:, None, None]
        weight, factors = scores.sum(-1), None  # [B, A] each
        if self.class_weights and context.train:
            own = jnp.asarray(self.class_weights)[scores.argmax(-1)]
            factors = jnp.where(weight > 0, own, 1.0)
            weight = weight * factors
        divisor = parallel.psum(jax.lax.stop_gradient(weight.sum()), context.axis)
        divisor = jnp.maximum(divisor, 1.0)
        terms: dict[str, Any] = {
            name: rows @ real / divisor
            for name, rows in self.encoding.losses(output, scores, factors).items()
        }
        pair = output.boxes, targets.boxes
        if self.offset_loss:
            pair = (anchors.encode(each, output.anchors[None]) for each in pair)
        box = self.box_loss(*pair)
        terms["box"] = (jnp.where(weight > 0, box, 0.0) * weight).sum() / divisor
        if output.distances is not None:
            distance = distribution_focal_loss(output, targets.boxes)
            terms["distance"] = (jnp.where(weight > 0, distance, 0.0) * weight).sum() / divisor
        loss: Any = sum(context.hparams[f"{name}_weight"] * value for name, value in terms.items())
        terms["loss"] = loss
        terms["positives"] = (targets.positive.sum(1) @ real) / real_rows(batch, context)
        return loss, (stats, terms)

    def assignments(
        self, variables: Tree, batch: Batch, context: StepContext
    ) -> tuple[assign.Targets, Array, Array]:
        """(`Targets` of every image of a prepared batch, cell centers [A, 2], strides [A])."""
        output = self._apply(variables, batch["image"])
        return self._targets(output, batch, context), output.points, output.strides

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`boxes [B, P, 4]` in pixels, `scores`, `labels` and `valid [B, P]`, best first."""
        return self._predict(variables, images, _whole(images))

    def predict_batch(self, variables: Tree, batch: Batch) -> dict[str, Array]:
        """`predict` for the images of a prepared batch, each with its own grid of tiles."""
        if not self.tiling or self.tiling.rows:
            return self.predict(variables, batch["image"])
        return self._predict(variables, batch["image"], self.extents(batch))

    def extents(self, batch: Batch) -> Array:
        """Height and width [B, 2] of the upper left part of each image that its tiles cover."""
        if not self.tiling or self.tiling.rows:
            return _whole(batch["image"])
        inner = jnp.rint(batch["size"] / batch["to_original"][:, 1::-1]).astype(jnp.int32)
        return jax.vmap(self.tiling.extent)(inner)

    def candidates(
        self, variables: Tree, images: Array, extents: Array | None = None
    ) -> tuple[Array, Array]:
        """All scores [B, A, K] and boxes [B, A, 4] in pixels, before non-maximum suppression.

        With tiles, the A boxes are the boxes of each tile in turn, then of the whole image; scores
        are 0 beyond the `extents` of an image.
        """
        if not self.tiling:
            return self._predict_views(variables, images)
        tiling = self.tiling.covering(*images.shape[1:3])
        extents = _whole(images) if extents is None else extents
        corners, shape = tiles.corners(tiling), (tiling.height, tiling.width)
        scores, found = self._predict_tiles(variables, images, corners, shape)
        scores *= _inside(tiling, extents)[..., None, None]
        found += np.tile(corners[:, ::-1], 2)[None, :, None]
        scores, found = (
            each.reshape(images.shape[0], -1, each.shape[-1]) for each in (scores, found)
        )
        if len(corners) == 1:
            return scores, found
        small = jax.vmap(partial(tiles.shrink, shape=shape))(images, extents)
        of_whole, whole = self._predict_views(variables, small)
        several = jnp.any(extents > np.array([shape]), -1)  # a single tile is the whole image
        of_whole *= several[:, None, None]
        factor = jnp.tile((extents / np.array([shape]))[:, ::-1], 2)[:, None]
        return (
            jnp.concatenate([scores, of_whole], 1),
            jnp.concatenate([found, whole * factor], 1),
        )

    def _predict(self, variables: Tree, images: Array, extents: Array) -> dict[str, Array]:
        scores, candidates = self.candidates(variables, images, extents)
        suppress = partial(self._suppress, images.shape[1:3])
        return jax.vmap(suppress)(scores, candidates, extents)

    def _predict_tiles(
        self, variables: Tree, images: Array, corners: np.ndarray, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Scores [B, T, A, K] and boxes [B, T, A, 4] of each tile, in pixels of the tile."""

        def predict(corners):
            parts = jax.vmap(partial(tiles.cut, places=corners, shape=shape))(images)
            found = self._predict_views(variables, parts.reshape(-1, *parts.shape[2:]))
            return [each.reshape(*parts.shape[:2], *each.shape[1:]) for each in found]

        count = len(corners)
        if count <= TILES_AT_ONCE:
            scores, found = predict(corners)
            return scores, found
        groups = np.resize(corners, (-(-count // TILES_AT_ONCE), TILES_AT_ONCE, 2))
        grouped = (jnp.moveaxis(each, 0, 1) for each in jax.lax.map(predict, groups))
        scores, found = (
            each.reshape(images.shape[0], -1, *each.shape[3:])[:, :count] for each in grouped
        )
        return scores, found

    def _predict_views(self, variables: Tree, images: Array) -> tuple[Array, Array]:
        views = [self._predict_view(variables, images, view) for view in self.views]
        scores, boxes_ = (jnp.concatenate(parts, 1) for parts in zip(*views, strict=True))
        return scores, boxes_

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """The `rows` of `metrics.detection`: predicted and true boxes, with labels and masks.

        Predicted boxes are clipped to the original image, as `jaxdet.Run.predict` does: a
        letterboxed input of the network extends beyond it.
        """
        found = boxes_to_original(predictions["boxes"], batch["to_original"])
        found = jax.vmap(boxes.clip)(found, *batch["size"].T)
        return {**predictions, "boxes": found, **{name: batch[name] for name in TRUTH}}

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """COCO's twelve scores, and mAP per class."""
        return detection_metrics.scores(rows, classes=self.classes)

    def details(self, rows: dict[str, Array], threshold: float | None = None) -> dict[str, Any]:
        """`report`, with `ece`, and with the precision, recall and F1 of each class.

        These additional scores are of the boxes with a score of at least `threshold`; None: .25.
        `ece` is the expected calibration error of all classes together.
        """
        least = detection_metrics.SCORE_THRESHOLD if threshold is None else threshold
        scores, found = self.report(rows), operating_point.details(rows, self.classes, least)
        labels = {name: of | found["labels"][name] for name, of in scores["labels"].items()}
        return {**scores, "ece": found["ece"], "labels": labels}

    def bootstrap(self, rows: dict[str, Array], resamples: int) -> dict[str, np.ndarray]:
        """`map`, `map50` and `map75` of resampled images, see `average_precision.bootstrap`."""
        matches = average_precision.match(rows, len(self.classes))
        return average_precision.bootstrap(matches, resamples=resamples)

    def _apply(self, variables: Tree, images: Array) -> DetectorOutput:
        output: Any = self.net.apply(variables, normalize(images, self.normalization), train=False)
        return output

    def _targets(
        self, output: DetectorOutput, batch: Batch, context: StepContext
    ) -> assign.Targets:
        """`Targets` of every image for its predictions; crowds are assigned to no cell."""
        scores = self.encoding.scores(output)
        one = partial(self.assigner, context.epoch, output.points, output.anchors)
        valid = batch["valid"] & ~batch["crowd"]
        targets = jax.vmap(one)(scores, output.boxes, batch["boxes"], batch["labels"], valid)
        return jax.lax.stop_gradient(targets)

    def _predict_view(self, variables: Tree, images: Array, view: View) -> tuple[Array, Array]:
        """Scores [B, A, K] and boxes [B, A, 4] of one view, in pixels of the images."""
        shape = images.shape[1:3]
        images = _resize(images, view.scale)
        height, width = images.shape[1:3]
        images = images[:, :, ::-1] if view.mirrored else images
        output = self._apply(variables, images)
        found = output.boxes
        if view.mirrored:
            x0, y0, x1, y1 = jnp.moveaxis(found, -1, 0)
            found = jnp.stack([width - x1, y0, width - x0, y1], -1)
        factor = np.array([[[shape[1] / width, shape[0] / height] * 2]], np.float32)
        return self.encoding.scores(output), found * factor

    def _suppress(
        self, shape: tuple[int, int], scores: Array, candidates: Array, extent: Array
    ) -> dict[str, Array]:
        """Detections of one image from scores [A, K] and boxes [A, 4]."""
        top, index = jax.lax.top_k(scores.reshape(-1), min(PRE_NMS_TOP_K, scores.size))
        cell, label = jnp.divmod(index, scores.shape[-1])
        candidates = boxes.clip(candidates, *extent)[cell]
        if self.tiling:
            regions = tiles.tile_boxes(self.tiling.covering(*shape))
            if len(regions) > 1:
                each = len(scores) // (len(regions) + 1)  # number of boxes of a tile
                parts = candidates, top, label, cell // each
                candidates, top = _merge_cut(*parts, regions, extent)
        kept = self.suppress(candidates, top, label)
        return {
            "boxes": kept.boxes,
            "scores": kept.scores,
            "valid": kept.valid,
            "labels": jnp.where(kept.valid, label[kept.indices], 0),
        }

    def _random_tiles(self, keys: jax.Array, batch: Batch, tiling: tiles.Tiling) -> Batch:
        """Replace every image of a batch by one of its tiles, drawn at random, with its boxes."""
        samples = augment.Sample(*(batch[name] for name in augment.Sample._fields))
        tiling = tiling.covering(*batch["image"].shape[1:3])
        possible = _inside(tiling, self.extents(batch))
        cut = partial(augment.random_tile, regions=tiles.tile_boxes(tiling))
        return batch | jax.vmap(cut)(keys, samples, possible)._asdict()


def make_assigner(*, tal_from: int = 0, positive_iou: float = 0.5, **tal: Any) -> Assigner:
    """An assigner for a `DetectionTask`: by IoU in the first `tal_from` epochs, then task-aligned.

    positive_iou: option of `assign.max_iou`, which assigns by IoU with the anchors.
    tal: options of `assign.task_aligned`; without options, all epochs assign by IoU.
    """

    def assigner(epoch, points, anchor_boxes, scores, predicted, *true):
        aligned = partial(assign.task_aligned, scores, predicted, points, *true, **tal)
        if tal and not tal_from:
            return aligned()
        fixed = assign.max_iou(
            anchor_boxes, *true, num_classes=scores.shape[-1], positive_iou=positive_iou
        )
        if not tal:
            return fixed
        late = epoch >= tal_from
        return jax.tree.map(lambda a, b: jnp.where(late, a, b), aligned(), fixed)

    return assigner


def boxes_to_original(found: Array, to_original: Array) -> Array:
    """Boxes [B, P, 4] in pixels of the original images.

    to_original [B, 4]: scale in x and y, and offset in x and y.
    """
    scale, offset = (
        jnp.tile(part, 2)[:, None] for part in (to_original[:, :2], to_original[:, 2:])
    )
    return found * scale + offset


def distribution_focal_loss(output: DetectorOutput, true: Array) -> Array:
    """Distribution focal loss (DFL) [B, A] of the distances of a box's sides from the cell center.

    It is the cross-entropy of the predicted distribution over steps of one stride, averaged over
    the four sides.  The true distance is clipped to the range of the steps, and the two steps next
    to the distance share the target probability linearly.

    true: true boxes [B, A, 4].
    Li et al. 2020, arXiv:2006.04388.
    """
    distances = anchors.boxes_to_ltrb(true, output.points[None]) / output.strides[None, :, None]
    logits: Any = output.distances  # not None: callers check it
    last = logits.shape[-1] - 1
    distances = jnp.clip(distances, 0, last - 0.01)
    log_probabilities = jax.nn.log_softmax(logits)  # [B, A, 4, R]
    steps = jnp.arange(last + 1)[None, None, None]
    target = jnp.maximum(1 - jnp.abs(steps - distances[..., None]), 0)
    return -(target * log_probabilities).sum(-1).mean(-1)


def _inside(tiling: tiles.Tiling, extents: Array) -> jax.Array:
    """Whether each of T tiles is inside the `extents` [B, 2] of each image, [B, T]."""
    ends = tiles.corners(tiling) + [tiling.height, tiling.width]
    return jnp.all(ends[None] <= extents[:, None], -1)


def _whole(images: Array) -> jax.Array:
    """Height and width [B, 2] of the images of a batch."""
    return jnp.broadcast_to(jnp.array(images.shape[1:3]), (images.shape[0], 2))


def _merge_cut(
    found: Array, scores: Array, labels: Array, tile: Array, regions: Array, extent: Array
) -> tuple[Array, Array]:
    """Clip boxes to their tiles, and join them by `tiles.merge_cut`; (boxes [N, 4], scores [N]).

    found [N, 4], scores [N], labels [N], in pixels of an image of the size `extent` [2].
    tile: index [N] of the tile of each box in `regions` [T, 4]; T for boxes of the whole image.
    """
    height, width = extent
    whole = jnp.array([[0, 0, width, height]], jnp.float32)
    regions = jnp.concatenate([regions, whole])
    own = regions[tile]
    low, high = (jnp.clip(part, own[:, :2], own[:, 2:]) for part in jnp.split(found, 2, -1))
    found = jnp.concatenate([low, high], -1)
    cut = tiles.is_cut(found, own, extent)
    return tiles.merge_cut(found, scores, labels, tile, regions, cut)


def _resize(images: Array, scale: float) -> Array:
    """Images [B, H, W, 3] with sides scaled to the nearest multiples of `STRIDE` pixels."""
    if scale == 1:
        return images
    height, width = (max(round(side * scale / STRIDE), 1) * STRIDE for side in images.shape[1:3])
    return jax.image.resize(images, (images.shape[0], height, width, 3), "linear")


def _rescale(batch: Batch, scale: float) -> Batch:
    """A batch with resized images, and its boxes scaled with them."""
    image = _resize(batch["image"], scale)
    (_, rows, columns, _), (_, height, width, _) = image.shape, batch["image"].shape
    factor = np.array([[[columns / width, rows / height] * 2]], np.float32)
    return batch | {"image": image, "boxes": batch["boxes"] * factor}
