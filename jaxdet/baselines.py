"""x"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdet.data import images
from jaxdet.errors import InputError
from jaxdet.profiling import timing
from jaxdet.tasks import localize
from jaxdet.training import evaluator
from jaxdet.types import Array

HOG, HAAR = "HOG + linear SVM", "Haar cascade"
FACE = "face"  # the label that the cascade finds
HOG_SIDE = 64  # pixels of the photos whose gradients are described
RIDGE_ALPHA = 10.0  # of 0.1, 1, 10, 100 the best mean IoU on the validation photos of seed 000
HAAR_MAX_SIDE = 640  # pixels of the longer side of photos that the cascade searches
HAAR_PROBABILITY = 0.99  # chance that the cascade's label is given


class Predictions(NamedTuple):
    """What an approach says of N photos."""

    logits: Array  # [N, K]
    box: Array  # [N, 4] in shares of the photo


class Baseline(NamedTuple):
    """An approach that has learnt."""

    photos: Callable  # source -> its photos as `answer` takes them: what is not timed
    answer: Callable  # photos -> Answers


class FixedOutputs:
    """A network whose variables are its answers."""

    def apply(self, variables, images, **_):
        """The logits [N, K] and boxes [N, 4] that were given as variables."""
        return variables["logits"], variables["box"]


def evaluate(splits, split, classes, root, *, box_loss, hyper):
    """{approach: the scores of its answers for `split`, and the `seconds` of an image}.

    `root` has the photos that the sources name; `box_loss` and `hyper` are those of the networks to
    compare with.  The cascade is left out where no label is `face`.  InputError when the training
    photos have fewer than two labels.
    """
    train, source = splits["train"], splits[split]
    if len(np.unique(train.arrays["label"])) < 2:
        raise InputError("classic approaches want training photos of at least two labels")
    learnt = {HOG: fit_hog(train, classes)}
    if FACE in classes:
        learnt[HAAR] = fit_haar(train, classes, root)
    task, found = localize.Labeller(FixedOutputs(), classes, None, box_loss).task(), {}
    for name, approach in learnt.items():
        answers, seconds = timing.timed(partial(approach.answer, approach.photos(source)))
        found[name] = evaluate_predictions(answers, source, task, hyper) | {
            "seconds": seconds / len(source)
        }
    return found


def evaluate_predictions(answers, source, task, hyper):
    """The terms of the loss and the scores of `Answers` for a source, as every evaluation has them.

    `task` is one of `localize.Labeller` with `Known` for its network.
    """
    step = jax.jit(partial(evaluator.eval_step, task=task, axis=None))
    rows = {"index": np.arange(len(source)), "real": np.ones(len(source), np.float32)}
    found = step(answers._asdict(), source.arrays, hyper, np.int32(0), rows)
    terms, measures = jax.device_get(found)
    return {**{name: float(value) for name, value in terms.items()}, **task.report(measures)}


def fit_hog(train, classes):
    """Histograms of oriented gradients with a linear SVM; the box by ridge regression from them.

    Logits are the SVM's decision values, each label against all others: their softmax stands in for
    the chances, which the SVM does not estimate.  Dalal and Triggs 2005.
    """
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC

    known = hog_features(train.arrays["image"])
    svm = LinearSVC(random_state=0).fit(known, train.arrays["label"])
    ridge = Ridge(RIDGE_ALPHA).fit(known, normalized_boxes(train))

    def answer(photos):
        found = hog_features(photos)
        return Predictions(_decisions(svm, found, len(classes)), np.float32(ridge.predict(found)))

    return Baseline(lambda source: source.arrays["image"], answer)


def fit_haar(train, classes, root):
    """OpenCV's cascade for frontal faces, which knows faces only.

    A photo in which it finds any is answered with `face` and the largest find; every other photo
    with the label that is most frequent in `train` besides `face`, and the mean box of that label
    there.  Photos of further labels are therefore always labelled wrongly.  The label given has a
    chance of 0.99, the others share the rest.  It searches the photos themselves, not the squares
    that networks take.  Viola and Jones 2001.
    """
    cv2 = require_opencv()
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")
    face, label = classes.index(FACE), train.arrays["label"]
    other = np.bincount(label[label != face]).argmax()
    usual = normalized_boxes(train)[label == other].mean(0)

    def answer(photos):
        found = [_largest_face(cascade, photo) for photo in photos]
        given = np.array([other if box is None else face for box in found])
        chances = np.full(
            (len(found), len(classes)), (1 - HAAR_PROBABILITY) / (len(classes) - 1), np.float32
        )
        chances[np.arange(len(found)), given] = HAAR_PROBABILITY
        return Predictions(np.log(chances), np.stack([usual if b is None else b for b in found]))

    return Baseline(
        lambda source: [_read_grayscale(Path(root, "images", n)) for n in source.names], answer
    )


def hog_features(photos):
    """Histograms of oriented gradients [N, 1764] of photos [N, S, S, 3] uint8 made 64 x 64."""
    cv2 = require_opencv()
    describe = cv2.HOGDescriptor((HOG_SIDE, HOG_SIDE), (16, 16), (8, 8), (8, 8), 9).compute
    small = partial(cv2.resize, dsize=(HOG_SIDE, HOG_SIDE), interpolation=cv2.INTER_AREA)
    return np.stack([describe(small(photo)).ravel() for photo in photos])


def normalized_boxes(source):
    """The true boxes [N, 4] of a source of square photos, in shares of the photo."""
    return source.arrays["boxes"][:, 0] / source.arrays["image"].shape[1]


def require_opencv():
    """OpenCV, or InputError; its version 5 has neither the gradients nor the cascades."""
    try:
        import cv2
    except ImportError:
        cv2 = None
    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError("--classic wants OpenCV 4: pip install jaxdet[data]")
    return cv2


def _decisions(svm, features, count):
    """Decision values [N, count]; a label that was never seen has the least of all."""
    found = svm.decision_function(features)
    found = np.stack([-found, found], 1) if found.ndim == 1 else found  # of two labels it tells one
    every = np.full((len(found), count), found.min(), np.float32)
    every[:, svm.classes_] = found
    return every


def _read_grayscale(path):
    """A photo as bytes of grey [H, W], upright, and not too large."""
    level, size = images.grey(path)
    factor = min(1.0, HAAR_MAX_SIDE / max(size))
    cv2 = require_opencv()
    small = cv2.resize(level, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return np.uint8(255 * small)


def _largest_face(cascade, photo):
    """The largest face found in a photo, [4] in shares of it, or None."""
    found = cascade.detectMultiScale(photo, scaleFactor=1.1, minNeighbors=5)
    if not len(found):
        return None
    x, y, width, height = max(found, key=lambda box: box[2] * box[3])
    return np.float32([x, y, x + width, y + height]) / np.tile(photo.shape[::-1], 2)
