"""Element-wise losses: a number for each element, which the caller masks and averages.

`(losses.ciou(predicted, true) * on).sum() / jnp.maximum(on.sum(), 1)` is the mean where `on`.

Box losses are one minus an overlap of `jaxdet.ops.boxes`, which states its edge cases.  They and
their gradients are those of torchvision's box losses, for boxes that have an area.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from jaxdet.ops import boxes

EPS = 1e-7  # torchvision's default, in square pixels: boxes in units of the image would feel it


def iou(predicted, true):
    """One minus IoU of corner boxes [..., 4], broadcasting: [...] in [0, 1].

    Boxes apart give 1 and no gradient; so do two empty ones.  Yu et al. 2016, arXiv:1608.01471,
    in the linear form.
    """
    return 1 - boxes.iou(predicted, true, eps=EPS)


def giou(predicted, true):
    """One minus generalised IoU of corner boxes [..., 4], broadcasting: [...] in [0, 2].

    Boxes apart are pulled together; where even their hull is empty, the loss is 1 without
    gradient.  Rezatofighi et al. 2019, arXiv:1902.09630.
    """
    return 1 - boxes.giou(predicted, true, eps=EPS)


def diou(predicted, true):
    """One minus distance-IoU of corner boxes [..., 4], broadcasting: [...] in [0, 2].

    Centres are pulled together even where one box holds the other; two points in one place give 1
    without gradient.  Zheng et al. 2020, arXiv:1911.08287.
    """
    return 1 - boxes.diou(predicted, true, eps=EPS)


def ciou(predicted, true):
    """One minus complete IoU of corner boxes [..., 4], broadcasting: [...] in [0, 2.5].

    As `diou`, and aspect ratios are made alike; their weight, alpha, passes no gradient, nor does
    the aspect ratio of a point.  Zheng et al. 2020, arXiv:1911.08287.
    """
    return 1 - boxes.ciou(predicted, true, eps=EPS)


BoxLoss = Literal["mse", "smooth_l1", "giou", "diou", "ciou"]


def box_loss(kind, predicted, true):
    """The loss `kind` of boxes [B, 4] in shares of the image, a number a box: [B].

    Shares differ by less than 1, so that `smooth_l1`, which is linear from there on (Girshick 2015,
    arXiv:1504.08083), is half of `mse`.
    """
    match kind:
        case "mse":
            return jnp.square(predicted - true).mean(-1)
        case "smooth_l1":
            return optax.huber_loss(predicted, true).mean(-1)
    return {"giou": giou, "diou": diou, "ciou": ciou}[kind](predicted, true)
