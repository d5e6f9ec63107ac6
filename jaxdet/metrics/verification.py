"""Scores of verification (the same person or not) and of identification, on the host, in NumPy.

A pair has a score, more if it is likelier of one person, and is taken for one person if the score
is at least a threshold.  FAR is the share of pairs of two persons that are, TAR that of pairs of
one.  Pairs of equal score are taken together.  InputError for no pairs, for scores that are not
finite, and, where shares of both kinds are wanted, for pairs of one kind only.
"""

from typing import NamedTuple

import numpy as np

from jaxdet.errors import InputError
from jaxdet.types import Array

FAR_LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)


class Roc(NamedTuple):
    """What T thresholds lead to, from the highest, which takes no pair, to the lowest."""

    far: Array  # [T] rising from 0 to 1
    tar: Array  # [T] rising from 0 to 1
    thresholds: Array  # [T] falling from infinity to the lowest score


class CrossValidation(NamedTuple):
    """What `lfw_folds` finds."""

    mean: float  # accuracy, in [0, 1]
    error: float  # standard error of this mean
    accuracies: Array  # [folds], by the numbers of the folds
    thresholds: Array  # [folds]


def roc(scores, same):
    """The receiver operating characteristic of scores [N] of pairs of one person (`same` [N])."""
    scores, same = _pairs(scores, same, both=True)
    return Roc(*_sklearn().roc_curve(same, scores, drop_intermediate=False))


def auc(scores, same):
    """Area under the curve: how often a pair of one person beats one of two; ties are half."""
    scores, same = _pairs(scores, same, both=True)
    return float(_sklearn().roc_auc_score(same, scores))


def eer(scores, same):
    """Equal error rate in [0, 1]: FAR where it is 1 - TAR, on straight lines between thresholds."""
    far, tar, _ = roc(scores, same)
    excess = far + tar - 1  # of false acceptances over false rejections, from -1 to 1
    after = int((excess >= 0).argmax())
    share = excess[after] / (excess[after] - excess[after - 1])
    return float(far[after] - share * (far[after] - far[after - 1]))


def tar_at_far(scores, same, fars=FAR_LEVELS):
    """Highest TAR [F] of the thresholds whose FAR is at most each of `fars` [F].

    Nothing between thresholds is made up: with fewer than 1 / far pairs of two persons, none of
    them is taken.
    """
    far, tar, _ = roc(scores, same)
    return tar[np.searchsorted(far, fars, side="right") - 1]


def dir_at_fpir(scores, found, true, fpirs=FAR_LEVELS):
    """Detection and identification rate [F] at false positive identification rates `fpirs` [F].

    Each of N probes has the identity `found` [N] as its best, with a score [N], and is `true` [N]:
    below 0 for those of nobody known.  FPIR is the share of these whose score reaches the
    threshold, DIR the share of the others whose score does and whose identity is found.
    Open-set identification, Guenther et al. 2017, arXiv:1705.01567, at rank 1.
    """
    scores, found, true = map(np.asarray, (scores, found, true))
    known = true >= 0
    if known.all() == known.any():
        raise InputError(
            f"identification: of {len(known)} probes {known.sum()} are of known people; "
            "give both kinds"
        )
    fpir, _, thresholds = roc(scores, known)
    least = thresholds[np.searchsorted(fpir, fpirs, side="right") - 1]
    right = (found == true)[known]
    return (right & (scores[known] >= least[:, None])).mean(1)


def accuracy_at_thresholds(scores, accept, thresholds, *, refuse=None):
    """Share [T] of N decisions that are right at each of `thresholds` [T].

    accept, refuse [N]: whether it is right to say yes, and no: the opposite of `accept` if None.
    Of pairs `accept` is that they are of one person.  Of unknown images, `accept` is that the best
    identity is theirs, `refuse` that they are nobody's: a known person taken for another is wrong
    at any threshold.
    """
    scores, accept = _pairs(scores, accept)
    refuse = ~accept if refuse is None else _pairs(scores, refuse)[1]
    order = np.argsort(scores)
    below = np.searchsorted(scores[order], thresholds)  # how many are refused
    no, yes = (np.append(0, np.cumsum(right[order])) for right in (refuse, accept))
    return (no[below] + yes[-1] - yes[below]) / len(scores)


def best_threshold(scores, accept, thresholds=None, *, refuse=None):
    """(threshold, accuracy) where `accuracy_by_threshold` is highest; the lowest of equals.

    thresholds [T]: among which; if None, all that tell scores apart: midway between two neighbours,
    at the lowest, and past the highest.
    """
    if thresholds is None:
        values = np.unique(_pairs(scores, accept)[0])
        past = np.nextafter(np.float32(values[-1]), np.float32(np.inf))  # also for float32 scores
        thresholds = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, [past]])
    thresholds = np.sort(thresholds)
    accuracies = accuracy_at_thresholds(scores, accept, thresholds, refuse=refuse)
    best = int(accuracies.argmax())
    return float(thresholds[best]), float(accuracies[best])


def cross_validate(scores, same, folds=10, thresholds=None):
    """Accuracy by cross validation: each fold is judged at the best threshold of all others.

    folds: how many, which are `consecutive`, or the fold [N] of each pair.  thresholds: as in
    `best_threshold`.  InputError for fewer pairs than folds, or than two folds.
    Huang et al. 2007 (Labeled Faces in the Wild), whose standard error is that of the folds.
    """
    scores, same = _pairs(scores, same)
    fold = np.asarray(folds) if np.ndim(folds) else consecutive_folds(len(scores), folds)
    names, found = np.unique(fold), []
    if len(names) < 2:
        raise InputError(f"verification: all {len(scores)} pairs are of one fold; want two or more")
    for name in names:
        here = fold == name
        threshold, _ = best_threshold(scores[~here], same[~here], thresholds)
        (accuracy,) = accuracy_at_thresholds(scores[here], same[here], [threshold])
        found.append((accuracy, threshold))
    accuracies, chosen = np.array(found).T
    error = accuracies.std(ddof=1) / len(names) ** 0.5
    return CrossValidation(float(accuracies.mean()), float(error), accuracies, chosen)


def linear_probe(embeddings, labels, others):
    """The label [M] that a linear classifier, fitted to embeddings [N, D], gives `others` [M, D].

    Multinomial logistic regression, for numbers brought to mean 0 and deviation 1, with
    scikit-learn's regularisation.  labels: [N], of two classes at least.
    Alain and Bengio 2016, arXiv:1610.01644.
    """
    _sklearn()
    from sklearn import linear_model, pipeline, preprocessing

    scaled = preprocessing.StandardScaler()
    fitted = pipeline.make_pipeline(scaled, linear_model.LogisticRegression(max_iter=1000))
    return fitted.fit(embeddings, labels).predict(others)


def consecutive_folds(count, folds):
    """The fold [count] of each of so many pairs in a row: folds as near to equal as can be."""
    if not 2 <= folds <= count:
        raise InputError(
            f"verification: {count} pairs cannot make {folds} folds; take 2 to {count}"
        )
    return np.repeat(np.arange(folds), [len(f) for f in np.array_split(np.arange(count), folds)])


def _pairs(scores, same, both=False):
    """Scores [N] float64 and whether pairs are of one person [N] bool, or InputError."""
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.shape != same.shape or scores.ndim != 1:
        raise InputError(
            f"verification: {scores.shape} scores of {same.shape} pairs; want one each"
        )
    if not scores.size:
        raise InputError("verification: there are no pairs to judge")
    if not np.isfinite(scores).all():
        raise InputError(f"verification: score {(~np.isfinite(scores)).argmax()} is not finite")
    if both and same.all() == same.any():
        kind = "one person" if same.any() else "two"
        raise InputError(f"verification: all {len(same)} pairs are of {kind}; give both kinds")
    return scores, same


def _sklearn():
    """scikit-learn's scores, without which nothing else here is missing."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise InputError("verification wants a package: pip install scikit-learn") from error
    return metrics
