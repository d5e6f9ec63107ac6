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
    every = [far_and_tar(scores, same, t) for t in [*scores, np.inf]]
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
