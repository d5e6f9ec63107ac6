"""Scores of verification (same identity or not) and of identification, on the host, in NumPy.

A pair of images has a score: the higher, the more likely the pair shows one identity.  The pair is
accepted if its score is at least a threshold.  FAR, the false accept rate, is the fraction of the
pairs of different identities that are accepted; TAR, the true accept rate, is the fraction of the
pairs of the same identity that are accepted.  Functions of scores raise InputError for empty input,
for scores that are not finite and, if they need both kinds of pairs, for pairs of one kind only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdet import packages
from jaxdet.errors import InputError
from jaxdet.types import Array

FAR_LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)


class Roc(NamedTuple):
    """ROC curve at T thresholds, from the highest, which accepts no pair, to the lowest."""

    far: np.ndarray  # [T] rising from 0 to 1
    tar: np.ndarray  # [T] rising from 0 to 1
    thresholds: np.ndarray  # [T] falling from infinity to the lowest score


class CrossValidation(NamedTuple):
    """Accuracies of the folds of a cross-validation."""

    mean: float
    error: float  # standard error of the mean
    accuracies: np.ndarray  # [folds], sorted by the number of the fold
    thresholds: np.ndarray  # [folds], the best threshold of all other folds


def roc(scores: Array, same: Array) -> Roc:
    """ROC curve of the scores [N] of pairs; `same` [N] is whether a pair shows one identity."""
    scores, same = _check_pairs(scores, same, both=True)
    return Roc(*_sklearn_metrics().roc_curve(same, scores, drop_intermediate=False))


def auc(scores: Array, same: Array) -> float:
    """Area under the ROC curve; arguments as in `roc`.

    It is the probability that a pair of the same identity has a higher score than a pair of
    different identities; ties count half.
    """
    scores, same = _check_pairs(scores, same, both=True)
    return float(_sklearn_metrics().roc_auc_score(same, scores))


def eer(scores: Array, same: Array) -> float:
    """Equal error rate: the FAR at which FAR equals 1 - TAR, in [0, 1]; arguments as in `roc`.

    The ROC curve is interpolated linearly between thresholds.
    """
    far, tar, _ = roc(scores, same)
    excess = far + tar - 1  # FAR minus the false reject rate, from -1 to 1
    after = int((excess >= 0).argmax())
    fraction = excess[after] / (excess[after] - excess[after - 1])
    return float(far[after] - fraction * (far[after] - far[after - 1]))


def tar_at_far(scores: Array, same: Array, fars: Sequence[float] = FAR_LEVELS) -> np.ndarray:
    """TAR [F] at each of the false accept rates `fars` [F].

    It is the highest TAR of all thresholds whose FAR is at most `far`, without interpolation: with
    fewer than 1 / far pairs of different identities, none of them may be accepted.
    """
    far, tar, _ = roc(scores, same)
    return tar[np.searchsorted(far, fars, side="right") - 1]


def dir_at_fpir(
    scores: Array, predicted: Array, identity: Array, fpirs: Sequence[float] = FAR_LEVELS
) -> np.ndarray:
    """Detection and identification rate [F] at false positive identification rates `fpirs` [F].

    FPIR is the fraction of probes without an identity in the gallery whose score reaches the
    threshold; DIR is the fraction of the other probes whose score reaches the threshold and whose
    best identity is correct.  Each DIR is taken at the lowest threshold whose FPIR is at most the
    given rate.

    predicted, scores [N]: the best identity of each probe, and its score.
    identity [N]: the true identity, below 0 if it is not in the gallery.

    Raises InputError unless there are probes with and without an identity in the gallery.
    Open-set identification at rank 1, Guenther et al. 2017, arXiv:1705.01567.
    """
    scores, predicted, identity = map(np.asarray, (scores, predicted, identity))
    known = identity >= 0
    if known.all() == known.any():
        raise InputError(
            f"identification: {known.sum()} of {len(known)} probes have an identity in the "
            "gallery; probes with and without one are required"
        )
    fpir, _, thresholds = roc(scores, known)
    chosen = thresholds[np.searchsorted(fpir, fpirs, side="right") - 1]
    correct = (predicted == identity)[known]
    return (correct & (scores[known] >= chosen[:, None])).mean(1)


def accuracy_at_thresholds(
    scores: Array,
    accept: Array,
    thresholds: Array | Sequence[float],
    *,
    reject: Array | None = None,
) -> np.ndarray:
    """Fraction [T] of the N decisions that are correct at each of `thresholds` [T].

    A score of at least the threshold is accepted.

    accept [N]: whether it is correct to accept.
    reject [N]: whether it is correct to reject; by default, where it is not correct to accept.

    It is correct to accept a pair of the same identity.  It is correct to accept a probe whose best
    identity is its own, and to reject a probe whose identity is not in the gallery; a probe whose
    identity is in the gallery but not the best one is an error at any threshold.
    """
    scores, accept = _check_pairs(scores, accept)
    reject = ~accept if reject is None else _check_pairs(scores, reject)[1]
    order = np.argsort(scores)
    rejected = np.searchsorted(scores[order], thresholds)  # how many
    no, yes = (np.append(0, np.cumsum(correct[order])) for correct in (reject, accept))
    return (no[rejected] + yes[-1] - yes[rejected]) / len(scores)


def best_threshold(
    scores: Array, accept: Array, thresholds: Array | None = None, *, reject: Array | None = None
) -> tuple[float, float]:
    """(threshold, accuracy) at the highest accuracy; the lowest of several such thresholds.

    Arguments as in `accuracy_at_thresholds`.

    thresholds [T]: the candidates; by default the lowest score, the midpoints of neighboring
    scores, and a threshold above the highest.
    """
    if thresholds is None:
        values = np.unique(_check_pairs(scores, accept)[0])
        above = np.nextafter(np.float32(values[-1]), np.float32(np.inf))  # also for float32 scores
        thresholds = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, [above]])
    thresholds = np.sort(thresholds)
    accuracies = accuracy_at_thresholds(scores, accept, thresholds, reject=reject)
    best = int(accuracies.argmax())
    return float(thresholds[best]), float(accuracies[best])


def cross_validate(
    scores: Array,
    accept: Array,
    folds: int | Array = 10,
    thresholds: Array | None = None,
    *,
    reject: Array | None = None,
) -> CrossValidation:
    """Accuracy of verification, each fold evaluated at the best threshold of all other folds.

    folds: the number of folds, which are then consecutive, or the fold [N] of each pair.
    accept, thresholds, reject: as in `best_threshold`; for pairs, `accept` says whether a pair
    shows one identity.  Raises InputError for fewer than two folds, or fewer pairs than folds.
    Huang et al. 2007, Labeled Faces in the Wild, who report the standard error over folds.
    """
    scores, accept = _check_pairs(scores, accept)
    reject = ~accept if reject is None else _check_pairs(scores, reject)[1]
    fold = np.asarray(folds) if np.ndim(folds) else consecutive_folds(len(scores), int(folds))
    names, results = np.unique(fold), []
    if len(names) < 2:
        raise InputError(
            f"verification: all {len(scores)} pairs are in one fold; at least 2 are required"
        )
    for name in names:
        inside = fold == name
        threshold, _ = best_threshold(
            scores[~inside], accept[~inside], thresholds, reject=reject[~inside]
        )
        (accuracy,) = accuracy_at_thresholds(
            scores[inside], accept[inside], [threshold], reject=reject[inside]
        )
        results.append((accuracy, threshold))
    accuracies, chosen = np.array(results).T
    error = accuracies.std(ddof=1) / len(names) ** 0.5
    return CrossValidation(float(accuracies.mean()), float(error), accuracies, chosen)


def consecutive_folds(count: int, folds: int) -> np.ndarray:
    """The fold [count] of each pair: consecutive folds whose sizes differ by at most 1.

    Raises InputError unless there are 2 to `count` folds.
    """
    if not 2 <= folds <= count:
        raise InputError(
            f"verification: folds must be from 2 to {count}, the number of pairs, got {folds}"
        )
    return np.repeat(np.arange(folds), [len(f) for f in np.array_split(np.arange(count), folds)])


def linear_probe(embeddings: Array, labels: Array, others: Array) -> np.ndarray:
    """Labels [M] of `others` [M, D], predicted by a classifier fitted to `embeddings` [N, D].

    The classifier is multinomial logistic regression on standardized features, with scikit-learn's
    default regularization.  labels [N]: labels of `embeddings`, of at least two classes.  Alain and
    Bengio 2016, arXiv:1610.01644.
    """
    pipeline, preprocessing, linear_model = (
        packages.load(f"sklearn.{name}", "the linear probe")
        for name in ("pipeline", "preprocessing", "linear_model")
    )
    scaler = preprocessing.StandardScaler()
    probe = pipeline.make_pipeline(scaler, linear_model.LogisticRegression(max_iter=1000))
    return probe.fit(embeddings, labels).predict(others)


def _check_pairs(scores, same, both=False) -> tuple[np.ndarray, np.ndarray]:
    """Convert scores [N] to float64 and flags `same` [N] to bool; InputError for invalid values."""
    scores, flags = np.asarray(scores, np.float64), np.asarray(same)
    if flags.size and not np.isin(flags, (0, 1)).all():
        place = (~np.isin(flags, (0, 1))).argmax()
        raise InputError(
            f"verification: labels of pairs must be 0 or 1, got {flags.flat[place]} at index "
            f"{place}"
        )
    same = flags.astype(bool)
    if scores.shape != same.shape or scores.ndim != 1:
        raise InputError(
            f"verification: scores must have one value per pair, got shape {scores.shape} for "
            f"pairs of shape {same.shape}"
        )
    if not scores.size:
        raise InputError("verification: there are no pairs to evaluate")
    if not np.isfinite(scores).all():
        place = (~np.isfinite(scores)).argmax()
        raise InputError(
            f"verification: scores must be finite, got {scores[place]} at index {place}"
        )
    if both and same.all() == same.any():
        kind = "the same identity" if same.any() else "different identities"
        raise InputError(
            f"verification: all {len(same)} pairs are of {kind}; pairs of both kinds are required"
        )
    return scores, same


def _sklearn_metrics():
    return packages.load("sklearn.metrics", "verification")
