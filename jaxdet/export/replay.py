"""The proof of a written file: in a process of its own, it must give the predictions of its run.

    python -m jaxdet.export.replay FILE IMAGES PREDICTIONS

reads images from an .npz file, and writes predictions to another one.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import packages
from jaxdet.errors import ReplayError
from jaxdet.training.experiment import Experiment
from jaxdet.types import Candidates, Detections, Localization, Prediction

COUNT = 16  # images that are replayed
MAX_PIXELS = 0.02  # largest difference of a box, in pixels of the original image
MAX_SCORE = 1e-4  # largest difference of a score
SIZES = (  # of variants of the images: aspect ratios, a single pixel, tiny and huge images
    *((48, 240), (240, 48), (333, 17), (1, 1), (5, 7), (101, 99), (1500, 1100), (64, 1600)),
)

Replayed = Prediction | Candidates
Runner = Callable[[Sequence[str]], None]


def images_to_replay(
    given: Sequence[np.ndarray], size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """`COUNT` images [h, w, 3] uint8, made of the given images or, if there are none, of noise.

    Half of the images are unchanged; the others are repeated and cut to `SIZES`.  Every third image
    is gray.  With `size`, all images have this size.
    """
    random = np.random.default_rng(0)
    pool = [*given] or [random.integers(0, 256, (40, 56, 3), np.uint8) for _ in range(2)]
    sizes = [pool[i % len(pool)].shape[:2] for i in range(COUNT - len(SIZES))] + [*SIZES]
    made = []
    for i, own in enumerate(sizes):
        image = _tiled(pool[i % len(pool)], size or own)
        made.append(np.repeat(image[..., 1:2], 3, 2) if i % 3 == 2 else image)
    return made


def split_images(experiment: Experiment) -> list[np.ndarray]:
    """The first images [h, w, 3] uint8 of the validation split or, without one, the first split.

    At most `COUNT - len(SIZES)` images are returned, as the network reads them, but without the
    padding of letterboxed images.
    """
    split = "val" if "val" in experiment.splits else next(iter(experiment.splits))
    batch, found = experiment.splits[split].first(COUNT - len(SIZES)).arrays, []
    images = np.asarray(batch["image"])
    if images.dtype != np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    for i, image in enumerate(images if images.ndim == 4 else images[..., None]):
        if "to_original" in batch:
            scale, offset = np.split(batch["to_original"][i], 2)
            left, top = np.rint(-offset / scale).astype(int)
            columns, rows = np.rint(batch["size"][i][::-1] / scale).astype(int)
            image = image[top : top + rows, left : left + columns]
        found.append(np.broadcast_to(image, (*image.shape[:2], 3)))
    return found


def prove(
    path: Path,
    images: Sequence[np.ndarray],
    expected: Sequence[Replayed],
    run: Runner,
    **limits: Any,
) -> tuple[float, float]:
    """Compare a file with its run; return the largest difference (of boxes, of scores).

    run: function that runs this module with the given arguments, see `run_process`.
    limits: options of `difference`.

    Raises ReplayError if a difference exceeds `MAX_PIXELS` or `MAX_SCORE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "images.npz", Path(folder) / "predictions.npz"
        np.savez(given, *images)
        run([str(path), str(given), str(answer)])
        kind = type(expected[0])
        with np.load(answer) as stored:
            columns = ([stored[f"{name}_{i}"] for name in kind._fields] for i in range(len(images)))
            found = [kind(*fields) for fields in columns]
    pairs = zip(expected, found, strict=True)
    differences = [difference(*pair, **limits) for pair in pairs]
    pixels, score = (max(column) for column in zip(*differences, strict=True))
    if not (pixels <= MAX_PIXELS and score <= MAX_SCORE):
        raise ReplayError(
            f"{path} does not give the predictions of its run: boxes differ by up to {pixels:.3g} "
            f"pixels (limit {MAX_PIXELS:g}), scores by up to {score:.3g} (limit {MAX_SCORE:g})"
        )
    return pixels, score


def difference(
    expected: Replayed,
    found: Replayed,
    *,
    score_threshold: float = 0.0,
    max_detections: int | None = None,
) -> tuple[float, float]:
    """The largest difference of two predictions of an image: (of boxes in pixels, of scores).

    Each detection is compared with the most similar detection of the same label.  A detection may
    be missing if its score is within `MAX_SCORE` of `score_threshold` or, among `max_detections`,
    of the lowest score.  The difference is infinite for different labels and for other missing
    detections.
    """
    if isinstance(expected, Detections) and isinstance(found, Detections):
        most = max_detections or np.inf
        differences = []
        for one, other in ((expected, found), (found, expected)):
            lowest = one.scores.min(initial=1.0) if len(one.scores) >= most else 0.0
            differences.append(_missing(one, other, max(score_threshold, lowest) + MAX_SCORE))
        pixels, score = np.max(differences, 0)
        return float(pixels), float(score)
    if (
        isinstance(expected, Localization)
        and isinstance(found, Localization)
        and expected.label != found.label
    ):
        return np.inf, np.inf

    def largest(*names):
        pairs = ((getattr(expected, n), getattr(found, n)) for n in names if n in expected._fields)
        return max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)

    return largest("boxes", "box"), largest("scores", "score", "probabilities")


def run_process(words: Sequence[str]) -> None:
    """Run this module in a process of its own, on the CPU; ReplayError if it fails."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", __name__, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ReplayError(f"{words[0]} cannot be replayed: {last[0]}")


def main(words: Sequence[str]) -> None:
    """Predict the images in a file, and write the predictions to another file."""
    path, given, answer = words
    with np.load(given) as stored:
        images = [stored[name] for name in stored.files]
    found = _run_onnx(path, images) if path.endswith(".onnx") else _run_program(path, images)
    fields = {
        f"{name}_{i}": getattr(one, name) for i, one in enumerate(found) for name in one._fields
    }
    np.savez(answer, **fields)


def _run_program(path: str, images: Sequence[np.ndarray]) -> list[Any]:
    from jaxdet.export.model import ExportedModel

    model = ExportedModel(path)
    return model.predict_prepared([model.prepare(image) for image in images], batch_size=4)


def _run_onnx(path: str, images: Sequence[np.ndarray]) -> list[Any]:
    """Predictions of an ONNX model for prepared images [H, W, C], in pixels of its input."""
    from jaxdet.export.model import to_prediction

    onnxruntime = packages.load("onnxruntime", "--format onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else 4
    names, found = [each.name for each in session.get_outputs()], []
    for start in range(0, len(images), size):
        own = images[start : start + size]
        padded = np.stack([*own, *[own[-1]] * (size - len(own))])
        columns = session.run(None, {"images": padded})
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        found += [to_prediction(row) for row, _ in zip(rows, own, strict=False)]
    return found


def _tiled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The upper left part of an image that is repeated down and to the right."""
    repeats = [-(-side // own) for side, own in zip(size, image.shape[:2], strict=True)]
    return np.tile(image, (*repeats, 1))[: size[0], : size[1]]


def _missing(one: Detections, other: Detections, least: float) -> tuple[float, float]:
    """The largest difference of a detection of `one` from the most similar detection in `other`.

    Detections with a score of at most `least` may be missing.
    """
    largest = np.zeros(2)
    for box, score, label in zip(*one, strict=True):
        same = other.labels == label
        boxes = np.abs(other.boxes[same] - box[None]).max(1, initial=0)
        scores = np.abs(other.scores[same] - score)
        worst = np.maximum(boxes / MAX_PIXELS, scores / MAX_SCORE)
        if score <= least and not (worst <= 1).any():
            continue
        if not len(worst):
            return np.inf, np.inf
        best = worst.argmin()
        largest = np.maximum(largest, (boxes[best], scores[best]))  # keeps NaN
    return float(largest[0]), float(largest[1])


if __name__ == "__main__":
    main(sys.argv[1:])
