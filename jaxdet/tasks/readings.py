"""How the logits of a detector's cells are read: as scores of classes, and in a loss.

Three ways to say that a cell has nothing: an objectness of its own (YOLOX), a class for the
background, or zeros for all classes (seed 002 asks for a choice between the last two).
Wanted scores [B, A, K] are those of `ops.assign.Targets`: in [0, 1], one class a cell, or none.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdet.models.heads import PRIOR


class Reading(NamedTuple):
    """One of the three ways."""

    logits: Callable  # K -> how many logits of classes a cell has
    objectness: bool  # whether it has one more of its own
    scores: Callable  # detector.Answers -> [B, A, K] in [0, 1]
    losses: Callable  # detector.Answers, wanted [B, A, K] -> {term: [B], summed over cells}


def _zeros_scores(answers):
    return jax.nn.sigmoid(answers.classes)


def _zeros_losses(answers, wanted):
    every = optax.sigmoid_binary_cross_entropy(answers.classes, wanted)
    return {"classification": every.sum((1, 2))}


def _objectness_scores(answers):
    return jax.nn.sigmoid(answers.classes) * jax.nn.sigmoid(answers.objectness)[..., None]


def _objectness_losses(answers, wanted):
    """Classes where there is an object, weighed by how much of it; objectness everywhere."""
    much = wanted.max(-1)  # [B, A]
    classes = optax.sigmoid_binary_cross_entropy(answers.classes, (wanted > 0).astype(jnp.float32))
    here = optax.sigmoid_binary_cross_entropy(answers.objectness, much)
    return {"classification": (classes.sum(-1) * much).sum(1), "objectness": here.sum(1)}


def _background(answers):
    """Logarithms of the chances [B, A, 1 + K]; equal logits give the background 1 - PRIOR."""
    classes = answers.classes.shape[-1] - 1
    lift = math.log(classes * (1 - PRIOR) / PRIOR) * (jnp.arange(1 + classes) == 0)
    return jax.nn.log_softmax(answers.classes + lift[None, None])


def _background_scores(answers):
    return jnp.exp(_background(answers)[..., 1:])


def _background_losses(answers, wanted):
    whole = jnp.concatenate([1 - wanted.sum(-1, keepdims=True), wanted], -1)
    return {"classification": -(whole * _background(answers)).sum((1, 2))}


ZEROS = Reading(lambda classes: classes, False, _zeros_scores, _zeros_losses)
OBJECTNESS = Reading(lambda classes: classes, True, _objectness_scores, _objectness_losses)
BACKGROUND = Reading(lambda classes: classes + 1, False, _background_scores, _background_losses)
