"""How a detector encodes background: all-zero targets, a background class, or an objectness score.

Target scores [B, A, K], as in `ops.assign.Targets`, are in [0, 1]; at most one class of a cell has
a score above 0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet.models.detector import DetectorOutput
from jaxdet.models.heads import PRIOR
from jaxdet.types import Array


class ClassEncoding(NamedTuple):
    """One way to encode background."""

    num_logits: Callable[[int], int]  # number of classes -> number of class logits per cell
    objectness: bool  # whether cells also have an objectness logit
    scores: Callable[[DetectorOutput], Array]  # predicted scores [B, A, K] in [0, 1]
    # from an output, target scores [B, A, K], and weights of the cells [B, A] or None, to
    # {term: [B]}, each summed over cells
    losses: Callable[[DetectorOutput, Array, Array | None], dict[str, Array]]


def _zeros_scores(output: DetectorOutput) -> Array:
    return jax.nn.sigmoid(output.classes)


def _zeros_losses(output: DetectorOutput, target: Array, weights: Array | None) -> dict[str, Array]:
    loss = _weighted(optax.sigmoid_binary_cross_entropy(output.classes, target), weights)
    return {"classification": loss.sum((1, 2))}


def _objectness_scores(output: DetectorOutput) -> Array:
    return jax.nn.sigmoid(output.classes) * jax.nn.sigmoid(output.objectness)[..., None]


def _objectness_losses(
    output: DetectorOutput, target: Array, weights: Array | None
) -> dict[str, Array]:
    """Class loss of positive cells, weighted by the target score; objectness loss of all cells."""
    weight = target.max(-1)  # [B, A]
    classes = optax.sigmoid_binary_cross_entropy(output.classes, (target > 0).astype(jnp.float32))
    classes = _weighted(classes, weights)
    objectness = _weighted(optax.sigmoid_binary_cross_entropy(output.objectness, weight), weights)
    return {
        "classification": (classes.sum(-1) * weight).sum(1),
        "objectness": objectness.sum(1),
    }


def _log_probabilities(output: DetectorOutput) -> Array:
    """Log-probabilities [B, A, 1 + K]; background, the first, has the prior 1 - PRIOR."""
    classes = output.classes.shape[-1] - 1
    bias = math.log(classes * (1 - PRIOR) / PRIOR) * (jnp.arange(1 + classes) == 0)
    return jax.nn.log_softmax(output.classes + bias[None, None])


def _background_scores(output: DetectorOutput) -> Array:
    return jnp.exp(_log_probabilities(output)[..., 1:])


def _background_losses(
    output: DetectorOutput, target: Array, weights: Array | None
) -> dict[str, Array]:
    full = jnp.concatenate([1 - target.sum(-1, keepdims=True), target], -1)
    loss = _weighted(full * _log_probabilities(output), weights)
    return {"classification": -loss.sum((1, 2))}


def _weighted(loss: Array, weights: Array | None) -> Array:
    """A loss [B, A] or [B, A, K] times the weights [B, A] of the cells."""
    if weights is None:
        return loss
    return loss * (weights[..., None] if loss.ndim > weights.ndim else weights)


ZEROS = ClassEncoding(lambda classes: classes, False, _zeros_scores, _zeros_losses)
OBJECTNESS = ClassEncoding(lambda classes: classes, True, _objectness_scores, _objectness_losses)
BACKGROUND_CLASS = ClassEncoding(
    lambda classes: classes + 1, False, _background_scores, _background_losses
)
ENCODINGS = {"zeros": ZEROS, "class": BACKGROUND_CLASS, "objectness": OBJECTNESS}
