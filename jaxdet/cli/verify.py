"""`jaxdet verify COMMAND RUN`: identify images, or compare pairs of them, by their embeddings.

`dev` finds a threshold where the truth is known and `test` applies it; `pair` compares two images,
`pairs` evaluates a list of pairs, and `probe` fits a linear classifier to embeddings.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet import api, files, runs, tables
from jaxdet.cli import common, predict_submission, thresholds, verify_options
from jaxdet.data import images, verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as verification_metrics
from jaxdet.ops import embeddings
from jaxdet.types import Array

MAX_PAIRS = 10_000_000  # pairs of images for AUC, ROC curve and histogram
DEFAULT_FOLDS = 10  # for probes, and for a list of pairs that gives no number of folds
THUMBNAIL_SIDE = 112  # pixels

Scores = dict[str, Any]


def run(command: str, options: Any) -> int:
    """Run one of the commands; returns the exit code."""
    commands = {"dev": dev, "test": test, "pair": pair, "pairs": pairs, "probe": probe}
    return commands[command](options)


def dev(options: verify_options.Dev) -> int:
    """Find the threshold with the best accuracy on labeled probes, and print the scores.

    Like the other commands here, it returns the exit code.
    """
    common.check_picture(options.worst, options.count)
    _check_step(options.step)
    if not options.sweep and options.metric != "cosine":
        raise InputError(f"--no-sweep needs --metric cosine, got {options.metric}")
    protocol = read_protocol(options)
    embedder = load_embedder(options)
    found = identify(options, embedder, protocol)
    threshold, scores = embeddings.THRESHOLD, found.counts()
    if options.metric == "cosine":
        scores |= found.scores_at(threshold)
    if options.sweep:
        threshold, _ = verification_metrics.best_threshold(
            found.score, found.predicted == found.true, reject=found.true < 0
        )
        best = found.scores_at(threshold)
        scores |= {f"best_{name}": value for name, value in best.items()}
        scores |= found.held_out()
    _print_scores(options, embedder, {**scores, **found.separation()})
    _write_results(options, "dev", threshold, embedder, found)
    return 0


def test(options: verify_options.Test) -> int:
    """Identify probes by a given threshold; print one line per probe, or write a table."""
    common.check_picture(options.worst, options.count)
    for name in ("worst", "out", "plots"):
        if getattr(options, name) and not options.truth:
            raise InputError(f"--{name} needs --truth, the labels of the unknown images")
    _check_step(options.step)
    threshold = thresholds.parse(options.threshold, options.metric)
    protocol = read_protocol(options)
    sample = None
    if options.sample:
        sample = predict_submission.read_sample(options.sample, protocol.probes)
    embedder = load_embedder(options)
    how = {"metric": options.metric, "reduce": options.reduce}
    value = thresholds.check_fits(threshold, embedder.checkpoint_id, **how)
    found = identify(options, embedder, protocol)
    labels = found.labels(value)
    if options.submit:
        predict_submission.write(options.submit, labels, found.probes, sample)
        _print_line(options, f"wrote {options.submit}")
    else:
        for path, label, score in zip(found.probes, labels, found.score, strict=True):
            row = {"image": str(path), "label": label, "score": round(float(score), 4)}
            print(json.dumps(row) if options.json else " ".join(map(str, row.values())))
    if options.truth:
        scores = {**found.counts(), **found.scores_at(value), **found.separation()}
        _print_scores(options, embedder, scores)
        _write_results(options, "test", value, embedder, found)
    return 0


def pair(options: verify_options.Pair) -> int:
    """Print the similarity of two images, and whether it reaches the threshold."""
    threshold = thresholds.parse(options.threshold, options.metric)
    embedder = load_embedder(options)
    value = thresholds.check_fits(threshold, embedder.checkpoint_id, metric=options.metric)
    found = embedder.embed(options.images)
    score = float(embeddings.similarity(found[:1], found[1:], metric=options.metric)[0, 0])
    if options.json:
        print(json.dumps({"score": score, "same": score >= value, "threshold": value}))
    else:
        print(f"{score:.4f} {'same' if score >= value else 'different'}")
    return 0


def pairs(options: verify_options.Pairs) -> int:
    """Print the scores of a list of pairs.

    Each fold is evaluated at the threshold that is best for the other folds.
    """
    common.check_picture(options.worst, options.count)
    listed = verification_protocol.read_pairs(options.pairs, options.root)
    if listed.missing and options.on_missing == "error":
        raise InputError(
            f"{listed.missing[0]} ({len(listed.missing)} pairs lack an image); leave such pairs "
            f"out with --on-missing skip"
        )
    if not listed.pairs:
        raise InputError(
            f"{options.pairs}: must list a pair whose images both exist below {options.root}, got "
            f"none"
        )
    index = [pair.index for pair in listed.pairs]
    count = len(index) + len(listed.missing)
    folds = options.folds or listed.folds or DEFAULT_FOLDS
    fold = verification_metrics.consecutive_folds(count, folds)[index]
    embedder = load_embedder(options)
    score, same = pair_scores(options.metric, embedder, listed.pairs)
    missing = {"rows_missing": len(listed.missing)} if listed.missing else {}
    counts = {"pairs": len(same), "same": int(same.sum()), **missing, "folds": len(np.unique(fold))}
    limits, scores = cross_validate(score, same, fold)
    _print_scores(options, embedder, {**counts, **scores})
    if options.plots:
        _plot_pairs(options, score, same)
    if options.worst and limits is not None:
        shown = zip(np.where(same, "same identity", "different"), score, strict=True)
        _draw_worst(
            options,
            [pair[:2] for pair in listed.pairs],
            [f"{truth}, {value:.2f}" for truth, value in shown],
            wrong=(score >= limits) != same,
            error=abs(score - limits),
        )
    return 0


def probe(options: verify_options.Probe) -> int:
    """Fit a linear classifier to half of the images; print its scores on the other images."""
    gallery = verification_protocol.read_gallery(options.folder)
    counts = np.bincount(gallery.labels, minlength=len(gallery.identities))
    if (usable := (counts > 1).sum()) < 2:
        raise InputError(
            f"{options.folder}: must have at least 2 identities with at least 2 images each, got "
            f"{usable}"
        )
    if (counts == 1).any():
        common.warn(f"identities with only one image are left out: {(counts == 1).sum()}")
    order = np.concatenate([np.arange(count) for count in counts])  # position within its identity
    several = counts[gallery.labels] > 1
    fitted, others = ((order % 2 == part) & several for part in (0, 1))
    embedder = load_embedder(options)
    found = np.asarray(embeddings.l2_normalize(embedder.embed(gallery.paths)))
    labels = gallery.labels
    correct = verification_metrics.linear_probe(found[fitted], labels[fitted], found) == labels
    scores = {
        "identities": int((counts > 1).sum()),
        "images": int(others.sum()),
        "accuracy": float(correct[others].mean()),
        "fitted_accuracy": float(correct[fitted].mean()),
    }
    _print_scores(options, embedder, scores)
    return 0


class Embedder(NamedTuple):
    """A run that embeds images, and the identity of its checkpoint."""

    run: api.Run
    checkpoint_id: dict[str, Any]  # see `thresholds.identify_checkpoint`

    def embed(self, paths: Sequence[Path]) -> np.ndarray:
        """Embeddings [N, D] of N image files, computed in batches of the run's `eval_batch`."""
        batch = min(self.run.config.eval_batch, len(paths))
        return self.run.embed(list(paths), batch_size=batch)


def load_embedder(options: verify_options.Embedding) -> Embedder:
    """Load the checkpoint that the options name; InputError unless it is from a run of faces."""
    runs.read_config(options.run, "faces")
    run = api.load(options.run, options.checkpoint, warn=common.warn)
    return Embedder(run, thresholds.identify_checkpoint(options.run, run.step))


class Protocol(NamedTuple):
    """The images of a verification protocol, and the true identities of its probes."""

    gallery: verification_protocol.Gallery
    probes: list[Path]  # [N]
    true: np.ndarray | None  # [N] index of an identity, -1 if not in the gallery; None if unknown


def read_protocol(options: verify_options.Dev | verify_options.Test) -> Protocol:
    """Read the gallery, the probes and, if the options name their table, the true labels."""
    gallery = verification_protocol.read_gallery(options.known)
    probes = verification_protocol.list_probes(options.unknown)
    true = None
    if options.truth:
        true = verification_protocol.read_truth(options.truth, gallery.identities, probes)
    return Protocol(gallery, probes, true)


class Identification(NamedTuple):
    """N probes compared with M gallery images."""

    gallery: verification_protocol.Gallery
    probes: list[Path]  # [N]
    true: Any  # [N] index of an identity, -1 if not in the gallery; None if unknown
    similarity: np.ndarray  # [N, M]
    predicted: np.ndarray  # [N] index of the most similar identity
    score: np.ndarray  # [N] float64: similarity to that identity
    trained: int  # number of identities of the gallery that the network was trained on

    def labels(self, threshold: float) -> list[str]:
        """Per probe, the most similar identity, or `UNKNOWN_LABEL` below the threshold."""
        accepted = zip(self.predicted, self.score >= threshold, strict=True)
        return [
            self.gallery.identities[index] if accept else verification_protocol.UNKNOWN_LABEL
            for index, accept in accepted
        ]

    def is_correct(self, threshold: float) -> np.ndarray:
        """Whether the decision on each probe [N] at a threshold is correct."""
        return np.where(self.score >= threshold, self.predicted == self.true, self.true < 0)

    def counts(self) -> Scores:
        """Numbers of images and identities."""
        return {
            "probes": len(self.probes),
            "unknown_probes": int((self.true < 0).sum()),
            "gallery_images": len(self.gallery.paths),
            "gallery_identities": len(self.gallery.identities),
            "trained_identities": self.trained,
        }

    def scores_at(self, threshold: float) -> Scores:
        """Accuracy over probes, and the fraction of gallery identities identified at least once."""
        right = (self.predicted == self.true) & (self.score >= threshold)
        return {
            "threshold": float(threshold),
            "accuracy": float(self.is_correct(threshold).mean()),
            "known_accuracy": len(np.unique(self.true[right])) / len(self.gallery.identities),
        }

    def held_out(self) -> Scores:
        """Cross-validated accuracy: each fold at the best threshold of the other folds.

        {} for fewer than two probes.
        """
        count = len(self.probes)
        if count < 2:
            return {}
        found = verification_metrics.cross_validate(
            self.score,
            self.predicted == self.true,
            np.arange(count) % min(DEFAULT_FOLDS, count),
            reject=self.true < 0,
        )
        return {"held_out_accuracy": found.mean}

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Pair probes with gallery images: (similarity [N], whether of the same identity [N]).

        Only the first probes are taken if there would be more than `MAX_PAIRS` pairs.
        """
        rows = slice(max(1, MAX_PAIRS // len(self.gallery.paths)))
        same = self.gallery.labels[None] == self.true[rows, None]
        return self.similarity[rows].ravel(), same.ravel()

    def separation(self) -> Scores:
        """Scores that do not depend on one threshold.

        Scores of pairs are left out unless there are pairs of both kinds, and identification rates
        unless there are known and unknown probes.
        """
        (score, same), scores = self.pairs(), {}
        if same.any() and not same.all():
            scores |= pair_rates(score, same)
        if (self.true < 0).any() and not (self.true < 0).all():
            rates = verification_metrics.dir_at_fpir(self.score, self.predicted, self.true)
            rates = zip(verification_metrics.FAR_LEVELS, rates, strict=True)
            scores |= {f"dir_at_fpir_{fpir:g}": float(rate) for fpir, rate in rates}
        return scores


def identify(
    options: verify_options.Identify, embedder: Embedder, protocol: Protocol
) -> Identification:
    """Compare all probes with the gallery; warn of gallery identities used in training."""
    gallery, probes, true = protocol
    trained = sorted({*gallery.identities} & {*embedder.run.classes})
    if trained:
        common.warn(
            f"{len(trained)} of {len(gallery.identities)} known identities were in the training "
            f"data, such as {trained[0]}; scores are valid only for identities unseen in training"
        )
    found = embedder.embed([*gallery.paths, *probes])
    count = len(gallery.paths)
    similarity = embeddings.similarity(found[count:], found[:count], metric=options.metric)
    predicted, score = embeddings.identify(
        similarity,
        gallery.labels,
        len(gallery.identities),
        reduce=options.reduce,
        threshold=-np.inf,
    )
    similarity, predicted, score = jax.device_get((similarity, predicted, score))
    score = score.astype(np.float64)
    return Identification(gallery, probes, true, similarity, predicted, score, len(trained))


def pair_scores(
    metric: embeddings.Metric, embedder: Embedder, listed: Sequence[verification_protocol.ImagePair]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare P pairs; return (similarity [P], whether of the same identity [P]).

    Each image is embedded once, even if it is in several pairs.
    """
    paths = sorted({path for pair in listed for path in pair[:2]})
    found, index = embedder.embed(paths), {path: number for number, path in enumerate(paths)}
    first, second = np.array([[index[path] for path in pair[:2]] for pair in listed]).T
    compare = {"cosine": embeddings.cosine, "euclidean": lambda a, b: -embeddings.distance(a, b)}
    score = jax.jit(compare[metric])(found[first], found[second])
    return np.asarray(score, np.float64), np.array([pair.same for pair in listed])


def cross_validate(
    score: np.ndarray, same: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray | None, Scores]:
    """Evaluate each fold of P pairs at the threshold that is best for the other folds.

    Returns (threshold [P] at which each pair is evaluated, scores).  If the pairs are all of one
    kind, or all in one fold, a warning says which scores are missing, and the first value is None.
    """
    if same.all() or not same.any():
        which = "the same identity" if same.any() else "different identities"
        common.warn(
            f"all {len(same)} pairs found are of {which}: accuracy, auc, eer and tar_at_far need "
            f"pairs of both kinds and are left out"
        )
        return None, {}
    rates = pair_rates(score, same)
    names, own = np.unique(fold, return_inverse=True)
    if len(names) == 1:
        common.warn(
            f"all {len(same)} pairs found are in one fold: accuracy needs other folds for its "
            f"threshold and is left out"
        )
        return None, rates
    found = verification_metrics.cross_validate(score, same, fold)
    accuracy = {"accuracy": found.mean, "accuracy_error": found.error}
    threshold = {"threshold": float(found.thresholds.mean())}
    return found.thresholds[own], {**accuracy, **threshold, **rates}


def pair_rates(score: np.ndarray, same: np.ndarray) -> Scores:
    """AUC, equal error rate, and true accept rates of pairs with scores [N] and flags `same` [N].

    There must be pairs of the same identity and pairs of different identities.
    """
    rates = verification_metrics.tar_at_far(score, same)
    rates = zip(verification_metrics.FAR_LEVELS, rates, strict=True)
    return {
        "auc": verification_metrics.auc(score, same),
        "eer": verification_metrics.eer(score, same),
        **{f"tar_at_far_{far:g}": float(rate) for far, rate in rates},
    }


def _check_step(step: float) -> None:
    if not 0 < step <= 1:
        raise InputError(f"--step must be above 0 and at most 1, got {step:g}")


def _print_scores(options: verify_options.Embedding, embedder: Embedder, scores: Scores) -> None:
    """Print a table of rounded scores or, with `--json`, the scores and the checkpoint's hash."""
    if options.json:
        print(json.dumps({**embedder.checkpoint_id, **scores}))
        return
    rows = [{"score": name, "value": value} for name, value in scores.items()]
    table = tables.aligned(rows, ("score", "value"))
    print("{run}, checkpoint of step {step}:".format(**embedder.checkpoint_id))
    print(f"\n{table}\n")


def _print_line(options: verify_options.Embedding, line: str) -> None:
    if not options.json:
        print(line)


def _write_results(
    options: Any, part: str, threshold: float, embedder: Embedder, found: Identification
) -> None:
    """Write the files that the options name: plots, threshold with scores, worst mistakes."""
    if options.plots:
        _plot_pairs(options, *found.pairs())
        _plot_thresholds(options, found, threshold)
    if options.out:
        scores = {"part": part, **found.counts(), **found.scores_at(threshold)}
        scores["held_out_accuracy"] = scores["accuracy"]
        if getattr(options, "sweep", False):  # the threshold was found with these images
            scores |= found.held_out()
        how = {"metric": options.metric, "reduce": options.reduce}
        thresholds.write(options.out, float(threshold), embedder.checkpoint_id, scores, **how)
        _print_line(options, f"wrote {options.out}")
    if options.worst:
        own = found.gallery.labels[None] == found.predicted[:, None]
        best = np.where(own, found.similarity, -np.inf).argmax(1)
        names = (*found.gallery.identities, verification_protocol.UNKNOWN_LABEL)
        shown = zip(found.true, found.labels(threshold), found.score, strict=True)
        _draw_worst(
            options,
            [(path, found.gallery.paths[i]) for path, i in zip(found.probes, best, strict=True)],
            [f"{names[true]}, predicted {name}, {score:.2f}" for true, name, score in shown],
            wrong=~found.is_correct(threshold),
            error=abs(found.score - threshold),
        )


def _plot_pairs(options: Any, score: np.ndarray, same: np.ndarray) -> None:
    from jaxdet.plots import verification as verification_plots

    options.plots.mkdir(parents=True, exist_ok=True)
    verification_plots.score_histogram(score, same, options.plots / "scores.png")
    if same.any() and not same.all():
        curve = verification_metrics.roc(score, same)
        verification_plots.roc(curve, options.plots / "roc.png")
    _print_line(options, f"wrote pictures to {options.plots}")


def _plot_thresholds(options: Any, found: Identification, chosen: float) -> None:
    """Plot the accuracy against the threshold, and write it as a table."""
    from jaxdet.plots import verification as verification_plots

    low, high = found.score.min(), found.score.max()
    if options.metric == "cosine":
        low, high = -1, 1
    grid = np.linspace(low, high, round(2 / options.step) + 1)
    rows = [found.scores_at(threshold) for threshold in grid]
    files.write_text(options.plots / "sweep.csv", tables.to_csv(rows, list(rows[0])) + "\n")
    verification_plots.threshold_sweep(rows, chosen, options.plots / "sweep.png")


def _draw_worst(
    options: Any,
    sides: Sequence[tuple[Path, Path]],
    titles: Sequence[str],
    *,
    wrong: Array,
    error: Array,
) -> None:
    """Draw the pairs of images with wrong decisions, the largest `error` first."""
    order = [i for i in np.argsort(-error, kind="stable") if wrong[i]][: options.count]
    if not order:
        _print_line(options, f"no mistakes: {options.worst} is not written")
        return
    pictures = []
    for i in order:
        pair = [images.read_resized_float(path, THUMBNAIL_SIDE)[0] for path in sides[i]]
        pictures.append(np.concatenate(pair, 1))
    worst = [titles[i] for i in order]
    common.draw(pictures, options.worst, titles=worst, quiet=options.json)
