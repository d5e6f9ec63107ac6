"""Metrics of verification in plain loops."""

import numpy as np


def identify(row, gallery_ids, num_identities, reduce, threshold):
    """(identity or -1, score) of one probe with the similarities `row` to the gallery."""
    best = -1, -np.inf
    for identity in range(num_identities):
        own = [s for s, i in zip(row, gallery_ids, strict=True) if i == identity]
        if own:
            score = max(own) if reduce == "max" else sum(own) / len(own)
            best = (identity, score) if score > best[1] else best
    return best if best[1] >= threshold else (-1, best[1])


def far_and_tar(scores, same, threshold):
    """(FAR, TAR) of pairs at a threshold."""
    accepted = {True: 0, False: 0}
    for score, genuine in zip(scores, same, strict=True):
        accepted[bool(genuine)] += score >= threshold
    impostors, genuines = sum(not s for s in same), sum(map(bool, same))
    return accepted[False] / impostors, accepted[True] / genuines


def auc(scores, same):
    """Probability that a genuine pair scores higher than an impostor pair; ties count half."""
    genuine = [s for s, g in zip(scores, same, strict=True) if g]
    impostor = [s for s, g in zip(scores, same, strict=True) if not g]
    wins = sum((a > b) + (a == b) / 2 for a in genuine for b in impostor)
    return wins / (len(genuine) * len(impostor))


def tar_at_far(scores, same, far):
    """Highest TAR of all thresholds whose FAR is at most `far`."""
    rates = [far_and_tar(scores, same, t) for t in [*scores, np.inf]]
    return max(tar for false, tar in rates if false <= far)


def dir_at_fpir(scores, found, true, fpir):
    """Highest fraction of known probes identified where at most `fpir` of others are accepted."""
    best, known = 0.0, sum(t >= 0 for t in true)
    rows = list(zip(scores, found, true, strict=True))
    for threshold in [*scores, np.inf]:
        accepted = sum(s >= threshold for s, _, t in rows if t < 0) / (len(true) - known)
        if accepted <= fpir:
            hits = sum(s >= threshold and f == t for s, f, t in rows if t >= 0)
            best = max(best, hits / known)
    return best


def accuracy(scores, accept, refuse, threshold):
    """Fraction of decisions that are right at a threshold."""
    rows = zip(scores, accept, refuse, strict=True)
    return sum(yes if s >= threshold else no for s, yes, no in rows) / len(scores)
