"""Classification losses: one value per image, which the caller masks and averages.

Targets [B, K] are probabilities of the classes: one-hot rows, possibly smoothed or mixed.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.types import Array

LabelLoss = Literal["cross_entropy", "binary", "squared", "hinge"]


def label_loss(name: LabelLoss, logits: Array, targets: Array) -> jax.Array:
    """The named loss [B] of logits [B, K] for target probabilities [B, K].

    `cross_entropy` is softmax cross-entropy, `binary` the sum of K sigmoid cross-entropies,
    `squared` is `brier`, and `hinge` is `multiclass_hinge`.
    """
    match name:
        case "binary":
            return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
        case "squared":
            return brier(logits, targets)
        case "hinge":
            return multiclass_hinge(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weights [K] of classes, inversely proportional to their numbers of objects, `counts [K]`.

    The mean weight of an object is 1.  Classes without objects get 1.  King and Zeng 2001.
    """
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def brier(logits: Array, targets: Array) -> jax.Array:
    """Brier score [B]: squared distance of the softmax of logits [B, K] from targets [B, K].

    In [0, 2].  Brier 1950.
    """
    return jnp.square(jax.nn.softmax(logits) - targets).sum(-1)


def multiclass_hinge(logits: Array, targets: Array) -> jax.Array:
    """Multi-class hinge loss [B] of logits [B, K] for targets [B, K]: margin 1, mean over classes.

    For one-hot targets it equals PyTorch's MultiMarginLoss.  Weston and Watkins 1999.
    """
    # Crammer and Singer (2001) take the maximum over classes.  With it, the network of the CIFAR-10
    # tutorial remained at equal logits: accuracy .157 after 4 epochs.
    own = (logits * targets).sum(-1, keepdims=True)
    return jax.nn.relu(logits + 1 - targets - own).mean(-1)
