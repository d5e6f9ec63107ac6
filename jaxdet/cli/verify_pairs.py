"""`jaxdet verify pairs RUN LIST`: the protocol of Labeled Faces in the Wild."""

import jax
import numpy as np

from jaxdet.cli import common, embedding, verify_output
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as scoring
from jaxdet.ops import embeddings

FOLDS = 10  # where a list of pairs says nothing


def pairs(options):
    """Print the scores of a list of pairs, each fold judged by the threshold of the others."""
    common.check_picture(options.worst, options.count)
    listed = verification_protocol.read_pairs(options.pairs, options.root)
    if listed.missing and options.on_missing == "error":
        raise InputError(
            f"{listed.missing[0]} ({len(listed.missing)} such); --on-missing skip leaves pairs out"
        )
    if not listed.pairs:
        raise InputError(f"{options.pairs}: there is no pair whose images are there")
    places = [pair.index for pair in listed.pairs]
    count = len(places) + len(listed.missing)
    fold = scoring.consecutive_folds(count, options.folds or listed.folds or FOLDS)[places]
    embedder = embedding.restored(options.run, options.checkpoint)
    score, same = _likeness(options, embedder, listed.pairs)
    skipped = {"rows_missing": len(listed.missing)} if listed.missing else {}
    counts = {"pairs": len(same), "same": int(same.sum()), **skipped}
    limits, scores = _judged(score, same, fold)
    folds = {"folds": len(np.unique(fold))}
    verify_output.tell(options, {**embedder.made, **counts, **folds, **scores})
    if options.plots:
        verify_output.plot(options, score, same)
    if options.worst and limits is not None:
        wrong = (score >= limits) != same
        told = zip(np.where(same, "one person", "two"), score, strict=True)
        titles = [f"{kind}, {value:.2f}" for kind, value in told]
        sides = [pair[:2] for pair in listed.pairs]
        verify_output.draw(options, sides, titles, wrong, abs(score - limits))
    return 0


def _judged(score, same, fold):
    """(threshold [P] that each pair is judged by, scores); a line says what the pairs cannot give.

    The first is None where there is no threshold to find.
    """
    every = f"all {len(same)} pairs that are there are"
    if same.all() or not same.any():
        kind = "of one person" if same.any() else "of two"
        common.warn(f"{every} {kind}: accuracy, auc, eer and tar_at_far want both kinds, left out")
        return None, {}
    rates = verify_output.rates(score, same)
    names, own = np.unique(fold, return_inverse=True)
    if len(names) == 1:
        common.warn(f"{every} in one fold: accuracy wants others to find its threshold, left out")
        return None, rates
    found = scoring.cross_validate(score, same, fold)
    accuracy = {"accuracy": found.mean, "accuracy_error": found.error}
    threshold = {"threshold": float(found.thresholds.mean())}
    return found.thresholds[own], {**accuracy, **threshold, **rates}


def _likeness(options, embedder, pairs):
    """(score, whether of one person) [P] of pairs; each image is embedded once."""
    paths = sorted({path for pair in pairs for path in pair[:2]})
    made, place = embedder.embed(paths), {path: number for number, path in enumerate(paths)}
    first, second = np.array([[place[path] for path in pair[:2]] for pair in pairs]).T
    like = {"cosine": embeddings.cosine, "euclidean": lambda a, b: -embeddings.distance(a, b)}
    score = jax.jit(like[options.kind])(made[first], made[second])
    return np.asarray(score, np.float64), np.array([pair.same for pair in pairs])
