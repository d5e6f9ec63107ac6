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
    """Loss of one pair of vectors: half the square of what its distance should not be."""
    apart = distance(a, b)
    return (apart if same else max(0.0, margin - apart)) ** 2 / 2


def center_update(features, centres, labels, on, rate):
    """Centres [K, D] after Wen's rule, a class after the other."""
    moved = np.array(centres, float)
    for k in range(len(centres)):
        mine = [
            x for x, label, here in zip(features, labels, on, strict=True) if label == k and here
        ]
        delta = sum((centres[k] - x for x in mine), np.zeros(len(centres[k]))) / (1 + len(mine))
        moved[k] -= rate * delta
    return moved


def triplet_hard(features, labels, on, margin, soft):
    """Loss of each row as an anchor; None where it has no positive or no negative."""
    found = []
    for a in range(len(labels)):
        others = [i for i in range(len(labels)) if i != a and on[i] and on[a]]
        near = [distance(features[a], features[i]) for i in others if labels[i] != labels[a]]
        far = [distance(features[a], features[i]) for i in others if labels[i] == labels[a]]
        found.append(_hinge(max(far) - min(near) + margin, soft) if near and far else None)
    return found


def triplet_semihard(features, labels, on, margin, soft):
    """Loss [B][B] of each anchor and positive; None where they are not, or have no negative."""
    count = len(labels)
    found = [[None] * count for _ in range(count)]
    for a, p in np.ndindex(count, count):
        if a == p or labels[a] != labels[p] or not on[a] or not on[p]:
            continue
        apart = distance(features[a], features[p]) ** 2
        others = [n for n in range(count) if on[n] and labels[n] != labels[a]]
        squares = [distance(features[a], features[n]) ** 2 for n in others]
        beyond = [square for square in squares if square > apart]
        if squares:
            chosen = min(beyond) if beyond else max(squares)
            found[a][p] = _hinge(apart - chosen + margin, soft)
    return found


def _hinge(violation, soft):
    return np.log1p(np.exp(violation)) if soft else max(0.0, violation)


def margin_logits(kind, features, weights, labels, margin, scale=1.0):
    """Logits [B, K] of `l_softmax`, `arcface` or `cosface`, by angles, one by one."""
    found = np.zeros((len(features), len(weights)))
    for b, k in np.ndindex(*found.shape):
        cos = np.clip(cosine(features[b], weights[k]), -1, 1)
        if labels[b] == k:
            cos = {"l_softmax": _l_softmax_psi, "arcface": _arcface_cos, "cosface": _cosface_cos}[
                kind
            ](cos, margin)
        lengths = norm(features[b]) * norm(weights[k])
        found[b, k] = (lengths if kind == "l_softmax" else scale) * cos
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


def lgm(features, means, labels, log_variances, margin):
    """(logits [B, K], likelihood [B]) of a mixture of Gaussians, a feature and class at a time."""
    logits, likelihood = np.zeros((len(features), len(means))), np.zeros(len(features))
    for b, k in np.ndindex(*logits.shape):
        squares = [(x - m) ** 2 for x, m in zip(features[b], means[k], strict=True)]
        apart = sum(s / np.exp(v) for s, v in zip(squares, log_variances[k], strict=True))
        volume = sum(log_variances[k])
        if labels[b] == k:
            likelihood[b] = apart / 2 + volume / 2
            apart *= 1 + margin
        logits[b, k] = -(volume + apart) / 2
    return logits, likelihood
