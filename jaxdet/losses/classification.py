"""Losses of labels."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

LabelLoss = Literal["cross_entropy", "binary", "squared", "hinge"]


def label_loss(kind, logits, wanted):
    """The loss `kind` of logits [B, K] for shares `wanted [B, K]` of the classes: [B].

    `binary` is the cross entropy of K yes-or-no answers, `squared` the squared distance of the
    softmax from what is wanted (Brier's score), `hinge` that of Weston and Watkins (1999), a
    mean over classes as PyTorch's MultiMarginLoss.  (That of Crammer and Singer, 2001, a maximum
    over them, left the tutorial's network at equal logits: accuracy .157 after 4 epochs.)
    """
    match kind:
        case "binary":
            return optax.sigmoid_binary_cross_entropy(logits, wanted).sum(-1)
        case "squared":
            return jnp.square(jax.nn.softmax(logits) - wanted).sum(-1)
        case "hinge":
            own = (logits * wanted).sum(-1, keepdims=True)
            return jax.nn.relu(logits + 1 - wanted - own).mean(-1)
    return optax.softmax_cross_entropy(logits, wanted)
