"""Box regression losses: one value per box, which the caller masks and averages.

`(losses.boxes.ciou(predicted, target) * mask).sum() / jnp.maximum(mask.sum(), 1)` is a masked mean.

The IoU losses are one minus a measure of overlap in `jaxdet.ops.boxes`, which documents the edge
cases.  For boxes with positive area, values and gradients equal torchvision's.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxdet.ops import boxes
from jaxdet.types import Array

EPS = 1e-7  # torchvision's default, in square pixels; not negligible for normalized boxes

BoxLoss = Literal["mse", "smooth_l1", "giou", "diou", "ciou"]


def iou(predicted: Array, target: Array) -> jax.Array:
    """One minus the IoU [...] of corner boxes [..., 4], broadcasting, in [0, 1].

    Disjoint boxes and empty boxes give 1 without a gradient.  This is the linear form of the IoU
    loss of Yu et al. 2016, arXiv:1608.01471.
    """
    return 1 - boxes.iou(predicted, target, eps=EPS)


def giou(predicted: Array, target: Array) -> jax.Array:
    """One minus the generalized IoU [...] of corner boxes [..., 4], broadcasting, in [0, 2].

    Disjoint boxes are pulled together.  If even the enclosing box is empty, the loss is 1 without
    a gradient.  Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    return 1 - boxes.giou(predicted, target, eps=EPS)


def diou(predicted: Array, target: Array) -> jax.Array:
    """One minus the distance-IoU [...] of corner boxes [..., 4], broadcasting, in [0, 2].

    Centers are pulled together even if one box contains the other.  Two empty boxes at the same
    point give 1 without a gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    return 1 - boxes.diou(predicted, target, eps=EPS)


def ciou(predicted: Array, target: Array) -> jax.Array:
    """One minus the complete IoU [...] of corner boxes [..., 4], broadcasting, in [0, 2.5].

    It is `diou` plus a penalty on the difference of the aspect ratios.  No gradient flows through
    the weight alpha of the penalty, nor through the aspect ratio of a box without
    width and height.  Zheng et al. 2020, arXiv:1911.08287.
    """
    return 1 - boxes.ciou(predicted, target, eps=EPS)


def smooth_l1(predicted: Array, target: Array) -> jax.Array:
    """Smooth L1 loss [...] of coordinates or offsets [..., 4], the mean over the four.

    It is quadratic up to a difference of 1, and linear above.  Girshick 2015, arXiv:1504.08083.
    """
    return optax.huber_loss(predicted, target).mean(-1)


def box_loss(name: BoxLoss, predicted: Array, target: Array) -> jax.Array:
    """The named loss [B] of boxes [B, 4], which are given as fractions of the image.

    `mse` is the mean squared error of the coordinates, twice `smooth_l1` if no coordinate differs
    by more than 1.
    """
    if name == "mse":
        return jnp.square(predicted - target).mean(-1)
    losses = {"smooth_l1": smooth_l1, "giou": giou, "diou": diou, "ciou": ciou}
    return losses[name](predicted, target)
