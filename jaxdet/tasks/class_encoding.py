"""How a detector encodes background: all-zero targets, a background class, or an objectness score.

Target scores [B, A, K] are those of `ops.assign.Targets`: in [0, 1], at most one class per cell.
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

    num_logits: Callable[[int], int]  # K -> class logits per cell
    objectness: bool  # whether cells have an objectness logit as well
    scores: Callable[[DetectorOutput], Array]  # [B, A, K] in [0, 1]
    losses: Callable[[DetectorOutput, Array], dict[str, Array]]  # {term: [B]}, summed over cells


def _zeros_scores(output: DetectorOutput) -> Array:
    return jax.nn.sigmoid(output.classes)


def _zeros_losses(output: DetectorOutput, target: Array) -> dict[str, Array]:
    loss = optax.sigmoid_binary_cross_entropy(output.classes, target)
    return {"classification": loss.sum((1, 2))}


def _objectness_scores(output: DetectorOutput) -> Array:
    return jax.nn.sigmoid(output.classes) * jax.nn.sigmoid(output.objectness)[..., None]


def _objectness_losses(output: DetectorOutput, target: Array) -> dict[str, Array]:
    """Class loss at positive cells, weighted by their target score; objectness loss everywhere."""
    weight = target.max(-1)  # [B, A]
    classes = optax.sigmoid_binary_cross_entropy(output.classes, (target > 0).astype(jnp.float32))
    objectness = optax.sigmoid_binary_cross_entropy(output.objectness, weight)
    return {
        "classification": (classes.sum(-1) * weight).sum(1),
        "objectness": objectness.sum(1),
    }


def _log_probabilities(output: DetectorOutput) -> Array:
    """[B, A, 1 + K], background first; equal logits give it a probability of 1 - PRIOR."""
    classes = output.classes.shape[-1] - 1
    bias = math.log(classes * (1 - PRIOR) / PRIOR) * (jnp.arange(1 + classes) == 0)
    return jax.nn.log_softmax(output.classes + bias[None, None])


def _background_scores(output: DetectorOutput) -> Array:
    return jnp.exp(_log_probabilities(output)[..., 1:])


def _background_losses(output: DetectorOutput, target: Array) -> dict[str, Array]:
    full = jnp.concatenate([1 - target.sum(-1, keepdims=True), target], -1)
    return {"classification": -(full * _log_probabilities(output)).sum((1, 2))}


ZEROS = ClassEncoding(lambda classes: classes, False, _zeros_scores, _zeros_losses)
OBJECTNESS = ClassEncoding(lambda classes: classes, True, _objectness_scores, _objectness_losses)
BACKGROUND_CLASS = ClassEncoding(
    lambda classes: classes + 1, False, _background_scores, _background_losses
)
ENCODINGS = {"zeros": ZEROS, "class": BACKGROUND_CLASS, "objectness": OBJECTNESS}
