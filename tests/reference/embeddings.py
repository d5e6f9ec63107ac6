"""Embeddings and metric-learning losses in plain loops."""

import numpy as np


def norm(x):
    """Euclidean norm of one vector."""
    return sum(float(v) ** 2 for v in x) ** 0.5


def cosine(a, b):
    """Cosine similarity of two vectors; 0 where either is zero."""
    product = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    return product / (norm(a) * norm(b)) if norm(a) * norm(b) else 0.0


def distance(a, b):
    """Euclidean distance of two vectors."""
    return norm(np.subtract(a, b, dtype=float))


def similarity(probes, gallery, metric):
    """Similarity [N, M] of each probe and each gallery embedding."""
    similar = {"cosine": cosine, "euclidean": lambda a, b: -distance(a, b)}[metric]
    return np.array([[similar(a, b) for b in gallery] for a in probes])


def contrastive(a, b, same, margin):
    """Loss of one pair: squared distance or, unless `same`, squared margin violation, halved."""
    d = distance(a, b)
    return (d if same else max(0.0, margin - d)) ** 2 / 2


def center_update(features, centers, labels, mask, rate):
    """Centers [K, D] after one update, class after class. Wen et al. 2016."""
    updated = np.array(centers, float)
    for k in range(len(centers)):
        own = [
            x for x, label, real in zip(features, labels, mask, strict=True) if label == k and real
        ]
        delta = sum((centers[k] - x for x in own), np.zeros(len(centers[k]))) / (1 + len(own))
        updated[k] -= rate * delta
    return updated


def triplet_hard(features, labels, mask, margin, soft):
    """Loss of each row as an anchor; None if it has no positive or no negative."""
    found = []
    for a in range(len(labels)):
        others = [i for i in range(len(labels)) if i != a and mask[i] and mask[a]]
        near = [distance(features[a], features[i]) for i in others if labels[i] != labels[a]]
        far = [distance(features[a], features[i]) for i in others if labels[i] == labels[a]]
        found.append(_hinge(max(far) - min(near) + margin, soft) if near and far else None)
    return found


def triplet_semihard(features, labels, mask, margin, soft):
    """Loss [B][B] of each anchor and positive; None for other pairs and without a negative."""
    count = len(labels)
    found = [[None] * count for _ in range(count)]
    for a, p in np.ndindex(count, count):
        if a == p or labels[a] != labels[p] or not mask[a] or not mask[p]:
            continue
        squared = distance(features[a], features[p]) ** 2
        others = [n for n in range(count) if mask[n] and labels[n] != labels[a]]
        squares = [distance(features[a], features[n]) ** 2 for n in others]
        farther = [square for square in squares if square > squared]
        if squares:
            negative = min(farther) if farther else max(squares)
            found[a][p] = _hinge(squared - negative + margin, soft)
    return found


def _hinge(violation, soft):
    return np.log1p(np.exp(violation)) if soft else max(0.0, violation)


def margin_logits(name, features, weights, labels, margin, scale=1.0):
    """Logits [B, K] of `l_softmax`, `arcface` or `cosface`, from angles."""
    found = np.zeros((len(features), len(weights)))
    for b, k in np.ndindex(*found.shape):
        cos = np.clip(cosine(features[b], weights[k]), -1, 1)
        if labels[b] == k:
            cos = MARGINS[name](cos, margin)
        norms = norm(features[b]) * norm(weights[k])
        found[b, k] = (norms if name == "l_softmax" else scale) * cos
    return found


def _l_softmax_psi(cos, margin):
    angle = np.arccos(cos)
    k = min(int(angle * margin / np.pi), margin - 1)
    return (-1) ** k * np.cos(margin * angle) - 2 * k


def _arcface_cos(cos, margin):
    angle = np.arccos(cos)
    return np.cos(angle + margin) if angle + margin < np.pi else cos - margin * np.sin(margin)


def _cosface_cos(cos, margin):
    return cos - margin


MARGINS = {"l_softmax": _l_softmax_psi, "arcface": _arcface_cos, "cosface": _cosface_cos}


def lgm(features, means, labels, log_variances, margin):
    """(logits [B, K], likelihood [B]) of a mixture of Gaussians with diagonal covariances."""
    logits, likelihood = np.zeros((len(features), len(means))), np.zeros(len(features))
    for b, k in np.ndindex(*logits.shape):
        squares = [(x - m) ** 2 for x, m in zip(features[b], means[k], strict=True)]
        distance = sum(s / np.exp(v) for s, v in zip(squares, log_variances[k], strict=True))
        log_det = sum(log_variances[k])
        if labels[b] == k:
            likelihood[b] = distance / 2 + log_det / 2
            distance *= 1 + margin
        logits[b, k] = -(log_det + distance) / 2
    return logits, likelihood
