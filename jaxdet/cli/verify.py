"""`jaxdet verify COMMAND RUN`: who is on unknown images, and who is on both (seed 004).

`dev` finds a threshold where the truth is known, `test` decides with it, `pair` compares two
images, `pairs` is the protocol of Labeled Faces in the Wild, and `probe` asks for planes.
"""

import json
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet import files, tables
from jaxdet.cli import (
    common,
    embedding,
    predict_submission,
    verify_output,
    verify_pairs,
    verify_probe,
)
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as scoring
from jaxdet.ops import embeddings

PAIRS = 10_000_000  # pairs of images, at most, of which AUC, ROC and histogram are made


class Probes(NamedTuple):
    """N unknown images against M images of known identities."""

    known: verification_protocol.Gallery
    files: list  # [N]
    true: Any  # [N]: place of the identity, -1 for nobody known; None where it is not told
    similarity: Any  # [N, M]
    found: Any  # [N]: the identity that each is most like
    score: Any  # [N]: how like

    def named(self, threshold):
        """The label [N] of each image by a threshold."""
        taken = zip(self.found, self.score >= threshold, strict=True)
        return [
            self.known.identities[who] if yes else verification_protocol.UNKNOWN_LABEL
            for who, yes in taken
        ]

    def right(self, threshold):
        """Whether each decision [N] by a threshold is right."""
        return np.where(self.score >= threshold, self.found == self.true, self.true < 0)


def run(command, options):
    """Do one of these commands."""
    others = {"pairs": verify_pairs.pairs, "probe": verify_probe.probe}
    return {"dev": dev, "test": test, "pair": pair, **others}[command](options)


def dev(options):
    """Find the best threshold on images whose truth is known; print the scores."""
    common.check_picture(options.worst, options.count)
    _check_step(options.step)
    if not options.sweep and options.kind != "cosine":
        raise InputError(f"--no-sweep: .4 is a cosine; --kind {options.kind} wants a sweep")
    told = _told(options)
    embedder = embedding.restored(options.run, options.checkpoint)
    probes = _compared(options, embedder, *told)
    chosen, scores = embeddings.THRESHOLD, _counts(probes, embedder)
    if options.kind == "cosine":
        scores |= _at(probes, chosen)
    if options.sweep:
        accept = probes.found == probes.true
        chosen, _ = scoring.best_threshold(probes.score, accept, reject=probes.true < 0)
        scores |= {f"best_{name}": value for name, value in _at(probes, chosen).items()}
    verify_output.tell(options, {**embedder.made, **scores, **_separation(probes)})
    _plot(options, probes, chosen)
    _keep(options, "dev", chosen, embedder, probes)
    _draw_probes(options, probes, chosen)
    return 0


def test(options):
    """Decide who is on unknown images by a given threshold; a table, or a line an image."""
    common.check_picture(options.worst, options.count)
    for name in ("worst", "out", "plots"):
        if getattr(options, name) and not options.truth:
            raise InputError(f"--{name}: what is right is known with --truth only")
    _check_step(options.step)
    limit = embedding.threshold(options.threshold, options.kind)
    told = _told(options)
    sample = predict_submission.sample(options.sample, told[1]) if options.sample else None
    embedder = embedding.restored(options.run, options.checkpoint)
    value = embedding.agreed(limit, embedder, kind=options.kind, join=options.join)
    probes = _compared(options, embedder, *told)
    labels = probes.named(value)
    if options.submit:
        predict_submission.write(options.submit, labels, sample)
        verify_output.say(options, f"wrote {options.submit}")
    else:
        for file, label, score in zip(probes.files, labels, probes.score, strict=True):
            row = {"image": str(file), "label": label, "score": round(float(score), 4)}
            print(json.dumps(row) if options.json else " ".join(map(str, row.values())))
    if options.truth:
        found = {**_counts(probes, embedder), **_at(probes, value), **_separation(probes)}
        verify_output.tell(options, {**embedder.made, **found})
        _plot(options, probes, value)
        _keep(options, "test", value, embedder, probes)
        _draw_probes(options, probes, value)
    return 0


def pair(options):
    """Print how alike two images are, and whether that is enough."""
    limit = embedding.threshold(options.threshold, options.kind)
    embedder = embedding.restored(options.run, options.checkpoint)
    value = embedding.agreed(limit, embedder, kind=options.kind)
    made = embedder.embed(options.images)
    score = float(embeddings.similarity(made[:1], made[1:], metric=options.kind)[0, 0])
    if options.json:
        print(json.dumps({"score": score, "same": score >= value, "threshold": value}))
    else:
        print(f"{score:.4f} {'same' if score >= value else 'different'}")
    return 0


def _check_step(step):
    if not 0 < step <= 1:
        raise InputError(f"--step {step}: more than 0 and at most 1 is wanted")


def _keep(options, part, threshold, embedder, probes):
    """Write a threshold and the scores that it has, where that is asked for."""
    if options.out:
        scores = {"part": part, **_counts(probes, embedder), **_at(probes, threshold)}
        how = {"kind": options.kind, "join": options.join}
        embedding.keep(options.out, float(threshold), embedder, scores, **how)
        verify_output.say(options, f"wrote {options.out}")


def _told(options):
    """(known identities, unknown files, the truth or None) as the options name them."""
    known, files = (
        verification_protocol.read_gallery(options.known),
        verification_protocol.list_probes(options.unknown),
    )
    true = (
        verification_protocol.read_truth(options.truth, known.identities, files)
        if options.truth
        else None
    )
    return known, files, true


def _compared(options, embedder, known, files, true):
    """The `Probes` of unknown files against known identities."""
    learnt = _learnt(known, embedder)
    if learnt:
        common.warn(
            f"{len(learnt)} of {len(known.identities)} known identities were learnt in training, first: "
            f"{learnt[0]}; scores are to be of people whom the network never saw"
        )
    made = embedder.embed([*known.paths, *files])
    count = len(known.paths)
    similarity = embeddings.similarity(made[count:], made[:count], metric=options.kind)
    found, score = embeddings.identify(
        similarity, known.labels, len(known.identities), reduce=options.join, threshold=-np.inf
    )
    similarity, found, score = jax.device_get((similarity, found, score))
    return Probes(known, files, true, similarity, found, score.astype(np.float64))


def _learnt(known, embedder):
    """The known identities that the network was trained to tell apart."""
    return sorted({*known.identities} & {*embedder.classes})


def _counts(probes, embedder):
    """How many there are of each, and how many of the known were in the training."""
    return {
        "unknown_images": len(probes.files),
        "known_images": len(probes.known.paths),
        "known_identities": len(probes.known.identities),
        "strangers": int((probes.true < 0).sum()),
        "known_identities_learnt": len(_learnt(probes.known, embedder)),
    }


def _at(probes, threshold):
    """Both readings of the accuracy of verification, by a threshold."""
    accepted = (probes.found == probes.true) & (probes.score >= threshold)
    return {
        "threshold": float(threshold),
        "accuracy": float(probes.right(threshold).mean()),
        "known_accuracy": int(accepted.sum()) / len(probes.known.identities),
    }


def _pairs(probes):
    """(similarity, whether of one person) of all pairs of an unknown and a known image."""
    rows = slice(max(1, PAIRS // len(probes.known.paths)))
    same = probes.known.labels[None] == probes.true[rows, None]
    return probes.similarity[rows].ravel(), same.ravel()


def _separation(probes):
    """Scores of all thresholds together, where there is what they compare."""
    found, (scores, same) = {}, _pairs(probes)
    if same.any() and not same.all():
        found |= verify_output.rates(scores, same)
    if (probes.true < 0).any() and not (probes.true < 0).all():
        rates = scoring.dir_at_fpir(probes.score, probes.found, probes.true)
        rates = zip(scoring.FAR_LEVELS, rates, strict=True)
        found |= {f"dir_at_fpir_{fpir:g}": float(rate) for fpir, rate in rates}
    return found


def _grid(options, probes):
    """Thresholds [T] of the curve."""
    if options.kind == "cosine":
        return np.linspace(-1, 1, round(2 / options.step) + 1)
    return np.linspace(probes.score.min(), probes.score.max(), round(2 / options.step) + 1)


def _plot(options, probes, chosen):
    """Curve, ROC and histogram as pictures, the first as a table as well, where they are wanted."""
    if not options.plots:
        return
    from jaxdet.plots import verification as verification_plots

    verify_output.plot(options, *_pairs(probes))
    rows = [_at(probes, threshold) for threshold in _grid(options, probes)]
    files.write_text(options.plots / "sweep.csv", tables.to_csv(rows, list(rows[0])) + "\n")
    verification_plots.threshold_sweep(rows, chosen, options.plots / "sweep.png")


def _draw_probes(options, probes, threshold):
    """The worst mistakes, each beside the image that it is most like of the identity found."""
    if not options.worst:
        return
    own = probes.known.labels[None] == probes.found[:, None]
    best = np.where(own, probes.similarity, -np.inf).argmax(1)
    sides = [(file, probes.known.paths[i]) for file, i in zip(probes.files, best, strict=True)]
    true = [
        (*probes.known.identities, verification_protocol.UNKNOWN_LABEL)[who] for who in probes.true
    ]
    told = zip(true, probes.named(threshold), probes.score, strict=True)
    titles = [f"{yes}, taken for {name}, {score:.2f}" for yes, name, score in told]
    wrong = ~probes.right(threshold)
    verify_output.draw(options, sides, titles, wrong, abs(probes.score - threshold))
