"""Localization of the one object of an image by convolutional sliding windows.

The network evaluates all windows of the image at once.  It predicts, for each window, whether the
window overlaps the object, the object's class, and its box in units of the window (0 to 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.losses import boxes as box_losses
from jaxdet.losses.boxes import BoxLoss
from jaxdet.ops import boxes, nms, numerics, windows
from jaxdet.tasks.base import forward, real_rows
from jaxdet.types import Array, Batch, StepContext, Tree

LossMask = Literal["both", "truth"]
Selection = Literal["class", "product", "merge"]

FIRST_CLASS = 1  # place of the first class in the outputs of the network
CONFIDENCE_POWER, VISIBLE_POWER = 4.0, 2.0  # weights of windows under "merge"


class WindowOutputs(NamedTuple):
    """Predictions of all windows."""

    detect: Array  # [...] logit that the window overlaps the object
    classes: Array  # [..., K] log-probabilities
    box: Array  # [..., 4] corners in window units


def constant_weight(context: StepContext) -> float:
    """A `box_weight_schedule` that keeps the box weight constant."""
    return 1.0


@dataclass(frozen=True)
class SlidingWindowTask:
    """Label and box of the one object of an image, from the predictions of all windows.

    net: window network from images [B, H, W, C] to outputs [B, rows, columns, 1 + K + 4].
    place: function (key, object) -> (image, box) that places an object at random on a canvas.
    mask_loss_by: windows whose class and box losses count: all windows that overlap the object
      ("truth"), or only the windows among them in which the network detects the object ("both").
    box_loss: loss of the boxes, in units of the window.
    reduction: whether losses are added ("sum") or averaged ("mean") over images and windows.
    selection: how an image is predicted from its windows, see `select_window`.
    box_weight_schedule: function from the context to a factor of the box weight in training.

    `context.hparams` holds the weights of the loss terms, `class_weight` and `box_weight`.
    """

    net: Any
    place: Callable
    mask_loss_by: LossMask = "both"
    box_loss: BoxLoss = "mse"
    reduction: Literal["sum", "mean"] = "sum"
    selection: Selection = "class"
    box_weight_schedule: Callable[[StepContext], Array | float] = constant_weight

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network."""
        return self.net.init(key, batch["image"])

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """Place every object on a canvas, at random.

        In evaluation, an image is placed at the same position every time.
        """
        image, box = jax.vmap(self.place)(keys, batch["image"] / 255.0)
        return batch | {"image": image, "boxes": box[:, None]}

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """This device's contribution to the loss, and to the means of its terms over images.

        The term `loss` is computed with the final box weight, whatever the schedule.
        """
        raw, stats = forward(key, self.net, variables, batch["image"], context)
        encode = partial(windows.encode_targets, grid=self._grid(batch["image"]))
        targets = jax.vmap(encode)(batch["boxes"][:, 0], batch["label"])
        terms = loss_terms(
            split_outputs(raw), targets, mask_by=self.mask_loss_by, box_loss=self.box_loss
        )
        sums = {name: term.sum((1, 2)) @ batch["real"] for name, term in terms.items()}
        classification = (
            sums["detection"] + context.hparams["class_weight"] * sums["classification"]
        )
        regression = context.hparams["box_weight"] * sums["regression"]
        correct = self._select(raw, batch["image"])["label"] == batch["label"]
        sums["loss"] = classification + regression
        sums["accuracy"] = correct.astype(jnp.float32) @ batch["real"]
        rows = real_rows(batch, context)
        factor = self.box_weight_schedule(context) if context.train else 1.0
        divisor = 1.0 if self.reduction == "sum" else rows * raw.shape[1] * raw.shape[2]
        loss = (classification + factor * regression) / divisor
        return loss, (stats, {name: total / rows for name, total in sums.items()})

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`label [B]`, `score [B]` and `box [B, 4]` in pixels.

        Raises InputError for images smaller than a window.
        """
        return self._select(self.net.apply(variables, images, train=False), images)

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """`right`, whether each label is correct, and the `iou` of each box, [B] each."""
        return {
            "right": predictions["label"] == batch["label"],
            "iou": boxes.iou(predictions["box"], batch["boxes"][:, 0]),
        }

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """`accuracy`, `iou`, `iou50`, `joint` and `right_iou` of a split.

        `iou` is the mean IoU, and `right_iou` the mean with IoU 0 for wrong labels.  `iou50` is the
        fraction of images with an IoU of at least .5, and `joint` the fraction of images with such
        an IoU and a correct label.
        """
        correct, iou = rows["right"], rows["iou"]
        return {
            "accuracy": float(correct.mean()),
            "iou": float(iou.mean(dtype=np.float64)),
            "iou50": float((iou >= 0.5).mean()),
            "joint": float((correct & (iou >= 0.5)).mean()),
            "right_iou": float((correct * iou).mean(dtype=np.float64)),
        }

    def _grid(self, images: Array) -> windows.Grid:
        return windows.grid(self.net.chain(), *images.shape[1:3])

    def _select(self, raw: Array, images: Array) -> dict[str, Array]:
        corners = windows.window_boxes(self._grid(images))
        return jax.vmap(
            lambda one: select_window(split_outputs(one), corners, selection=self.selection)
        )(raw)


@dataclass(frozen=True)
class MultipleObjectsTask(SlidingWindowTask):
    """A `SlidingWindowTask` that predicts every object of an image, see `detect_objects`.

    It is trained and evaluated on images of one object; evaluation takes the best detection.
    """

    score_threshold: float = 0.8
    nms_iou: float = 0.05
    max_detections: int = 30

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """`boxes [B, P, 4]`, `scores`, `labels` and `valid [B, P]`, best first.

        Raises InputError for images smaller than a window.
        """
        raw = self.net.apply(variables, images, train=False)
        detect = partial(
            detect_objects,
            corners=windows.window_boxes(self._grid(images)),
            score_threshold=self.score_threshold,
            iou_threshold=self.nms_iou,
            max_detections=self.max_detections,
        )
        return jax.vmap(lambda one: detect(split_outputs(one)))(raw)

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """As `SlidingWindowTask.measure`, for the best detection.

        An image without detections counts as wrong, with IoU 0.
        """
        best = {"label": predictions["labels"][:, 0], "box": predictions["boxes"][:, 0]}
        measured, found = super().measure(best, batch), predictions["valid"][:, 0]
        return {"right": measured["right"] & found, "iou": jnp.where(found, measured["iou"], 0.0)}


def split_outputs(raw: Array) -> WindowOutputs:
    """`WindowOutputs` of raw outputs [..., 1 + K + 4], in float32."""
    raw = raw.astype(jnp.float32)
    classes = jax.nn.log_softmax(raw[..., FIRST_CLASS:-4])
    return WindowOutputs(raw[..., 0], classes, raw[..., -4:])


def loss_terms(
    outputs: WindowOutputs,
    targets: Array,
    *,
    mask_by: LossMask = "both",
    box_loss: BoxLoss = "mse",
) -> dict[str, Array]:
    """The losses `detection`, `classification` and `regression` of each window, [...] each.

    targets: [..., 6], see `windows.encode_targets`.

    Classification (negative log-likelihood) and regression (`box_loss`) are 0 in windows that do
    not overlap the object and, with `mask_by="both"`, in windows in which the network does not
    detect it.  No gradient flows through this mask.
    """
    inside = targets[..., 0]
    detected = (outputs.detect > 0).astype(jnp.float32) if mask_by == "both" else 1.0
    label, box = targets[..., 1].astype(jnp.int32), targets[..., 2:]
    nll = -jnp.take_along_axis(outputs.classes, label[..., None], -1)[..., 0]
    return {
        "detection": optax.sigmoid_binary_cross_entropy(outputs.detect, inside),
        "classification": inside * detected * nll,
        "regression": inside * detected * box_losses.box_loss(box_loss, outputs.box, box),
    }


def select_window(
    outputs: WindowOutputs, corners: Array, *, selection: Selection = "class"
) -> dict[str, Array]:
    """`label`, `score` and `box [4]` of an image from the predictions of its windows.

    outputs: arrays [rows, columns, ...].
    corners: corners [rows, columns, 4] of the windows in pixels.
    selection: "class" takes the window with the highest class probability; "product" takes the
      window with the highest product of class and detection probability, since classes are not
      trained in windows without an object; "merge" averages all windows, weighted by both
      probabilities and by the visible fraction of the predicted box (after OverFeat, Sermanet et
      al. 2013, arXiv:1312.6229).
    """
    log_detect = jax.nn.log_sigmoid(outputs.detect)
    confidence = outputs.classes.max(-1) + (0.0 if selection == "class" else log_detect)
    image_boxes = windows.from_window(outputs.box, corners)
    if selection == "merge":
        return _merge(outputs, image_boxes, confidence)
    best = jnp.argmax(confidence)  # of the windows in reading order
    label = jnp.argmax(outputs.classes.reshape(-1, outputs.classes.shape[-1])[best])
    return {
        "label": label,
        "score": jnp.exp(confidence.ravel()[best]),
        "box": image_boxes.reshape(-1, 4)[best],
    }


def detect_objects(
    outputs: WindowOutputs,
    corners: Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> dict[str, Array]:
    """`boxes [P, 4]`, `scores`, `labels`, `valid [P]` of all objects of an image, best first.

    outputs: arrays [rows, columns, ...].
    corners: corners [rows, columns, 4] of the windows in pixels.

    The score of a window is the probability that it overlaps an object, times the probability of
    the class, times a power of the visible fraction of the box, since predictions of objects cut
    off by the window are poor.  `nms.nms` takes the windows with a score above `score_threshold`,
    without regard to their classes; P = `max_detections`.
    """
    confidence = outputs.classes.max(-1) + jax.nn.log_sigmoid(outputs.detect)  # [rows, columns]
    scores = jnp.exp(confidence) * visible_fraction(outputs.box) ** VISIBLE_POWER
    kept = nms.nms(
        windows.from_window(outputs.box, corners).reshape(-1, 4),
        scores.ravel(),
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        score_threshold=score_threshold,
    )
    labels = outputs.classes.argmax(-1).ravel()[kept.indices]
    return {
        "boxes": kept.boxes,
        "scores": kept.scores,
        "labels": jnp.where(kept.valid, labels, 0),
        "valid": kept.valid,
    }


def _merge(outputs: WindowOutputs, image_boxes: Array, confidence: Array) -> dict[str, Array]:
    """The prediction for an image: weighted means, over windows, of log-probabilities and boxes."""
    visible = visible_fraction(outputs.box).ravel()
    confident = jax.nn.softmax(CONFIDENCE_POWER * confidence.ravel())
    weight = confident * visible**VISIBLE_POWER
    total = weight.sum()
    weight = jnp.where(total > 0, numerics.safe_divide(weight, total[None]), confident)
    mean = weight @ outputs.classes.reshape(-1, outputs.classes.shape[-1])
    box = weight @ image_boxes.reshape(-1, 4)
    return {"label": jnp.argmax(mean), "score": jnp.exp(mean.max()), "box": box}


def visible_fraction(box: Array) -> Array:
    """Fraction [...] of the area of boxes [..., 4], in window units, that is inside the window."""
    return numerics.safe_divide(boxes.area(boxes.clip(box, 1, 1)), boxes.area(box))
