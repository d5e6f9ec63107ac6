"""Losses of classification in plain loops."""

import numpy as np


def classification_loss(kind, logits, wanted):
    """The loss of one image: logits [K], and the shares [K] of the classes that are wanted."""
    logits = [float(logit) for logit in logits]
    whole, loss = sum(np.exp(logit) for logit in logits), 0.0
    if kind == "hinge":
        pairs = list(zip(logits, wanted, strict=True))
        own = sum(out * share for out, share in pairs)
        return sum(max(out + 1 - share - own, 0) for out, share in pairs) / len(pairs)
    for logit, share in zip(logits, wanted, strict=True):
        chance, alone = np.exp(logit) / whole, 1 / (1 + np.exp(-logit))
        loss += {
            "cross_entropy": -share * np.log(chance),
            "binary": -share * np.log(alone) - (1 - share) * np.log(1 - alone),
            "squared": (chance - share) ** 2,
        }[kind]
    return loss


def smoothed_label(label, count, smoothing=0.0):
    """What an image is to be taken for [K]: its label, less what is shared among all classes."""
    return [(1 - smoothing) * (k == label) + smoothing / count for k in range(count)]
