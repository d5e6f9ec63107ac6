"""Classical baselines for images with one label and one box, evaluated exactly as networks are.

Each baseline is fitted to the training split.  It predicts logits and boxes, which are scored by
`jaxdet.tasks.localize`.  The baselines need OpenCV 4: `pip install jaxdet[data]`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet import packages
from jaxdet.data import images
from jaxdet.data.sources import ArraySource
from jaxdet.errors import InputError
from jaxdet.losses.boxes import BoxLoss
from jaxdet.profiling import timing
from jaxdet.tasks import localize
from jaxdet.training import evaluator
from jaxdet.types import Array, Task

HOG, HAAR = "HOG + linear SVM", "Haar cascade"
FACE = "face"  # label of the objects that the cascade detects
HOG_SIDE = 64  # pixels of the square images that HOG describes
RIDGE_ALPHA = 10.0  # gave the best mean IoU among 0.1, 1, 10 and 100
HAAR_MAX_SIDE = 640  # pixels; larger images are shrunk to this longer side before the search
HAAR_PROBABILITY = 0.99  # probability given to the label that the cascade predicts


class Predictions(NamedTuple):
    """Predictions of a baseline for N images."""

    logits: Array  # [N, K]
    box: Array  # [N, 4] in fractions of the image


class Baseline(NamedTuple):
    """A fitted baseline; `predict(inputs(source))` gives its predictions for a source."""

    inputs: Callable[[ArraySource], Any]  # not included in the time per image
    predict: Callable[[Any], Predictions]


class FixedOutputs:
    """A stand-in for a network: its outputs are its variables."""

    def apply(self, variables: Mapping[str, Array], images: Array, **_: Any) -> tuple[Array, Array]:
        """Return the variables `logits` [N, K] and `box` [N, 4]; the images are ignored."""
        return variables["logits"], variables["box"]


def evaluate(
    splits: Mapping[str, ArraySource],
    split: str,
    classes: Sequence[str],
    root: str | Path,
    *,
    box_loss: BoxLoss,
    hparams: Mapping[str, Array],
) -> dict[str, dict[str, Any]]:
    """Fit the baselines to the split `train`, and evaluate them on another split.

    Args:
        splits: the sources by name of the split; `train` is required.
        split: name of the split to evaluate on.
        classes: names of the classes.
        root: folder whose `images/` holds the images that the sources name.
        box_loss: loss of boxes, the same as for the networks to compare with.
        hparams: loss weights, the same as for the networks to compare with.

    Returns {name of the baseline: scores}, where `seconds` is the time per image.  The Haar cascade
    is left out if there is no class `face`.  Raises InputError if the training images have fewer
    than two labels.
    """
    train, source = splits["train"], splits[split]
    if len(np.unique(train.arrays["label"])) < 2:
        raise InputError("--classic needs training images of at least two labels, got one label")
    fitted = {HOG: fit_hog(train, classes)}
    if FACE in classes:
        fitted[HAAR] = fit_haar(train, classes, root)
    net: Any = FixedOutputs()
    task = localize.LocalizationTask(net, tuple(classes), _no_transform, box_loss)
    scores = {}
    for name, baseline in fitted.items():
        predictions, seconds = timing.timed(partial(baseline.predict, baseline.inputs(source)))
        scores[name] = evaluate_predictions(predictions, source, task, hparams)
        scores[name]["seconds"] = seconds / len(source)
    return scores


def evaluate_predictions(
    predictions: Predictions, source: ArraySource, task: Task, hparams: Mapping[str, Array]
) -> dict[str, Any]:
    """Compute the loss terms and scores of predictions, in the same way as for a network.

    `task` is a `LocalizationTask` whose network is `FixedOutputs`.
    """
    step = jax.jit(partial(evaluator.eval_step, task=task, axis=None))
    rows = {"index": np.arange(len(source)), "real": np.ones(len(source), np.float32)}
    results = step(predictions._asdict(), source.arrays, hparams, np.int32(0), rows)
    terms, measures = jax.device_get(results)
    return {**{name: float(value) for name, value in terms.items()}, **task.report(measures)}


def fit_hog(train: ArraySource, classes: Sequence[str]) -> Baseline:
    """Fit a linear SVM (labels) and a ridge regression (boxes) to HOG descriptors.

    HOG are histograms of oriented gradients.  The logits are the one-vs-rest decision values of the
    SVM; their softmax takes the place of probabilities, which an SVM does not estimate.  Dalal and
    Triggs 2005.
    """
    linear_model, svms = (
        packages.load(f"sklearn.{name}", "HOG") for name in ("linear_model", "svm")
    )
    features = hog_features(train.arrays["image"])
    svm = svms.LinearSVC(random_state=0).fit(features, train.arrays["label"])
    ridge = linear_model.Ridge(RIDGE_ALPHA).fit(features, normalized_boxes(train))

    def predict(images):
        features = hog_features(images)
        logits = _decision_values(svm, features, len(classes))
        return Predictions(logits, ridge.predict(features).astype(np.float32))

    return Baseline(lambda source: source.arrays["image"], predict)


def fit_haar(train: ArraySource, classes: Sequence[str], root: str | Path) -> Baseline:
    """OpenCV's Haar cascade for frontal faces, which detects no other objects.

    An image with detections gets the label `face` and the box of the largest detection.  Any other
    image gets the most frequent other label in `train` and the mean box of that label, so that a
    third label is never predicted.  The predicted label has probability 0.99; the other labels
    share the rest equally.  The cascade searches the image files, not the square images that are
    the input of networks.  Viola and Jones 2001.
    """
    cv2 = require_opencv()
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")
    face, label = classes.index(FACE), train.arrays["label"]
    other = np.bincount(label[label != face]).argmax()
    mean_box = normalized_boxes(train)[label == other].mean(0)

    def inputs(source):
        return [_read_grayscale(Path(root, "images", name)) for name in source.names]

    def predict(images):
        boxes = [_largest_face(cascade, image) for image in images]
        labels = np.array([other if box is None else face for box in boxes])
        rest = (1 - HAAR_PROBABILITY) / (len(classes) - 1)
        probabilities = np.full((len(boxes), len(classes)), rest, np.float32)
        probabilities[np.arange(len(boxes)), labels] = HAAR_PROBABILITY
        boxes = np.stack([mean_box if box is None else box for box in boxes])
        return Predictions(np.log(probabilities), boxes)

    return Baseline(inputs, predict)


def hog_features(images: Array) -> np.ndarray:
    """HOG descriptors [N, 1764] of images [N, S, S, 3] uint8, resized to 64 x 64."""
    cv2 = require_opencv()
    describe = cv2.HOGDescriptor((HOG_SIDE, HOG_SIDE), (16, 16), (8, 8), (8, 8), 9).compute
    resize = partial(cv2.resize, dsize=(HOG_SIDE, HOG_SIDE), interpolation=cv2.INTER_AREA)
    return np.stack([describe(resize(image)).ravel() for image in images])


def normalized_boxes(source: ArraySource) -> np.ndarray:
    """True boxes [N, 4] of a source of square images, as fractions of the image."""
    return source.arrays["boxes"][:, 0] / source.arrays["image"].shape[1]


def require_opencv() -> Any:
    """Import cv2; InputError without OpenCV 4, because OpenCV 5 has neither HOG nor cascades."""
    try:
        import cv2
    except ImportError:
        cv2 = None
    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError("--classic needs OpenCV 4: pip install jaxdet[data]")
    return cv2


def _no_transform(key, image, box):
    return image, box


def _decision_values(svm, features, count) -> np.ndarray:
    """Decision values [N, count]; a label without training images gets the lowest value."""
    values = svm.decision_function(features)
    if values.ndim == 1:  # with two labels, scikit-learn gives only the values of the second one
        values = np.stack([-values, values], 1)
    every = np.full((len(values), count), values.min(), np.float32)
    every[:, svm.classes_] = values
    return every


def _read_grayscale(path: Path) -> np.ndarray:
    """Read an image as upright grayscale [H, W] uint8, its longer side at most `HAAR_MAX_SIDE`."""
    levels, size = images.read_gray(path)
    factor = min(1.0, HAAR_MAX_SIDE / max(size))
    cv2 = require_opencv()
    resized = cv2.resize(levels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return (255 * resized).astype(np.uint8)


def _largest_face(cascade, image: np.ndarray) -> np.ndarray | None:
    """The box [4] of the largest detection, as fractions of image [H, W]; None without one."""
    found = cascade.detectMultiScale(image, scaleFactor=1.1, minNeighbors=5)
    if not len(found):
        return None
    x, y, width, height = max(found, key=lambda box: box[2] * box[3])
    corners = np.array([x, y, x + width, y + height], np.float32)
    return corners / np.tile(image.shape[::-1], 2)
