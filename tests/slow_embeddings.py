"""Slow twins of embeddings and verification: the obvious loops, in NumPy."""

import numpy as np


def length(x):
    """Euclidean length of one vector."""
    return sum(float(v) ** 2 for v in x) ** 0.5


def cosine(a, b):
    """Cosine between two vectors; 0 where one has no length."""
    product = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    return product / (length(a) * length(b)) if length(a) * length(b) else 0.0


def distance(a, b):
    """Euclidean distance of two vectors."""
    return length(np.subtract(a, b, dtype=float))


def similarity(unknown, known, kind):
    """Likeness [N, M] of each unknown vector and each known one."""
    like = {"cosine": cosine, "euclidean": lambda a, b: -distance(a, b)}[kind]
    return np.array([[like(a, b) for b in known] for a in unknown])


def identify(row, owner, identities, join, threshold):
    """(identity or -1, score) of one unknown image whose similarity to known ones is `row`."""
    best = -1, -np.inf
    for identity in range(identities):
        mine = [s for s, o in zip(row, owner, strict=True) if o == identity]
        if mine:
            score = max(mine) if join == "max" else sum(mine) / len(mine)
            best = (identity, score) if score > best[1] else best
    return best if best[1] >= threshold else (-1, best[1])


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
            cos = {"l_softmax": _psi, "arcface": _arc, "cosface": _minus}[kind](cos, margin)
        lengths = length(features[b]) * length(weights[k])
        found[b, k] = (lengths if kind == "l_softmax" else scale) * cos
    return found


def _psi(cos, margin):
    angle = np.arccos(cos)
    k = min(int(angle * margin / np.pi), margin - 1)
    return (-1) ** k * np.cos(margin * angle) - 2 * k


def _arc(cos, margin):
    angle = np.arccos(cos)
    return np.cos(angle + margin) if angle + margin < np.pi else cos - margin * np.sin(margin)


def _minus(cos, margin):
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


def shares(scores, same, threshold):
    """(FAR, TAR) of pairs at a threshold, one pair after the other."""
    taken = {True: 0, False: 0}
    for score, one in zip(scores, same, strict=True):
        taken[bool(one)] += score >= threshold
    return taken[False] / sum(not one for one in same), taken[True] / sum(map(bool, same))


def auc(scores, same):
    """How often a pair of one person beats one of two; ties are half."""
    one = [s for s, of_one in zip(scores, same, strict=True) if of_one]
    two = [s for s, of_one in zip(scores, same, strict=True) if not of_one]
    return sum((a > b) + (a == b) / 2 for a in one for b in two) / (len(one) * len(two))


def tar_at_far(scores, same, far):
    """Highest TAR of the thresholds whose FAR is at most `far`."""
    every = [shares(scores, same, t) for t in [*scores, np.inf]]
    return max(taken for false, taken in every if false <= far)


def dir_at_fpir(scores, found, true, fpir):
    """Share of known probes found, at the lowest threshold that takes few enough strangers."""
    best, known = 0.0, sum(t >= 0 for t in true)
    rows = list(zip(scores, found, true, strict=True))
    for threshold in [*scores, np.inf]:
        strangers = sum(s >= threshold for s, _, t in rows if t < 0) / (len(true) - known)
        if strangers <= fpir:
            hits = sum(s >= threshold and f == t for s, f, t in rows if t >= 0)
            best = max(best, hits / known)
    return best


def accuracy(scores, accept, refuse, threshold):
    """Share of decisions that are right at a threshold."""
    rows = zip(scores, accept, refuse, strict=True)
    return sum(yes if s >= threshold else no for s, yes, no in rows) / len(scores)
