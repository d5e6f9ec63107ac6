"""Losses of classification in plain loops."""

import numpy as np


def classification_loss(name, logits, target):
    """Loss of one image with logits [K] and target probabilities [K]."""
    logits = [float(logit) for logit in logits]
    if name == "hinge":
        pairs = list(zip(logits, target, strict=True))
        true_logit = sum(logit * t for logit, t in pairs)
        return sum(max(logit + 1 - t - true_logit, 0) for logit, t in pairs) / len(pairs)
    total, loss = sum(np.exp(logit) for logit in logits), 0.0
    for logit, t in zip(logits, target, strict=True):
        softmax, sigmoid = np.exp(logit) / total, 1 / (1 + np.exp(-logit))
        loss += {
            "cross_entropy": -t * np.log(softmax),
            "binary": -t * np.log(sigmoid) - (1 - t) * np.log(1 - sigmoid),
            "squared": (softmax - t) ** 2,
        }[name]
    return loss


def smoothed_label(label, num_classes, smoothing=0.0):
    """Target probabilities [K] of a label, with `smoothing` spread evenly over all classes."""
    uniform = smoothing / num_classes
    return [(1 - smoothing) * (k == label) + uniform for k in range(num_classes)]
