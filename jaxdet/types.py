"""Axes, batch keys, and the values that the packages pass to each other.

Axes: B batch, H rows, W columns, C channels, K classes, A cells or anchors, G true-box slots, T
true boxes for evaluation, P predictions, D embedding.  A box is its corners `x0 y0 x1 y1`: float32,
in pixels of the network's input image, x to the right, y down, half-open (a single lit pixel has
area 1).

Batch keys (a task uses the subset it needs):
`image [B,H,W,C]`, `label [B]`, `boxes [B,G,4]`, `labels [B,G]`, `valid [B,G]`, `crowd [B,G]`,
`real [B]` (0 marks a row that only pads), `id [B]`, `size [B,2]` (original height, width),
`to_original [B,4]` (scale and offset from network pixels to original pixels).

The true objects for evaluation, in pixels of the original image and independent of the size of the
network's input: `true_boxes [B,T,4]`, `true_labels`, `true_valid`, `true_crowd`, `true_area [B,T]`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray  # traced or not; NumPy arrays on the host
Batch = dict[str, Array]
Tree = Any  # a pytree of arrays
Device = Any  # a jax.Device, which type checkers do not accept as a type


class StepContext(NamedTuple):
    """Progress of the run at a step, for everything that depends on it."""

    train: bool  # static: augmentation, dropout and batch statistics on or off
    step: Array  # traced: parameter updates so far
    epoch: Array  # traced: completed passes over the training set
    hparams: dict[str, Array]  # traced numbers that a sweep may vary: dropout rates, loss weights
    axis: str | None = None  # name of the device axis under pmap, None under jit
    scale: float = 1.0  # static: size of training images relative to the configured one


class Task(Protocol):
    """The part of a system that the training loop knows: pure functions of arrays.

    A task is immutable and holds its network.
    """

    def init(self, key: jax.Array, batch: Batch) -> Tree:
        """Variables of the network for a prepared batch."""
        ...

    def augment(self, keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        """Convert a batch to input of the network, with augmentation if `context.train`.

        `keys` [B] are random keys, one per row.
        """
        ...

    def loss(
        self, variables: Tree, batch: Batch, key: jax.Array, context: StepContext
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        """Return (loss, (batch statistics, terms)), this device's contribution to the global loss.

        The sums over devices are the loss and terms of the global batch without its padding rows;
        in most tasks, these are means over rows.
        """
        ...

    def predict(self, variables: Tree, images: Array) -> dict[str, Array]:
        """Predictions for images [B, H, W, C], each with leading axis B."""
        ...

    def measure(self, predictions: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """Measurements of each image, [B, ...], from which `report` computes scores."""
        ...

    def report(self, rows: dict[str, Array]) -> dict[str, Any]:
        """Scores of a whole split from its measurements [N, ...], on the host."""
        ...


@runtime_checkable
class AssigningTask(Protocol):
    """A task whose targets depend on the predictions, such as detection."""

    def assignments(self, variables: Tree, batch: Batch, context: StepContext) -> tuple:
        """Return (targets per image, centers [A, 2], strides [A]) for a prepared batch."""
        ...


@runtime_checkable
class EmbeddingTask(Protocol):
    """A task whose predictions hold an `embedding [B, D]` by which images are compared."""

    def embed(self, variables: Tree, images: Array) -> Array:
        """Embeddings [B, D], not normalized, of images [B, H, W, C]."""
        ...


class TrainState(struct.PyTreeNode):
    """The complete state of a run between two steps; a checkpoint holds it."""

    step: Array  # int32: steps done
    params: Tree
    stats: Tree  # running statistics of batch norm; {} without any
    opt_state: Tree
    ema: Tree  # {"params", "stats"}: moving averages; {} when off
    hparams: dict[str, Array]
    key: Array  # root of the fold_in chain
    bookkeeping: dict[str, Any]  # sums of loss terms, best score, patience, first non-finite step


class Detections(NamedTuple):
    """The objects found in one image, best first."""

    boxes: np.ndarray  # [N, 4] float32: corners in pixels of the original image
    scores: np.ndarray  # [N] float32
    labels: np.ndarray  # [N] int32: indices into `Run.classes`


class Faces(NamedTuple):
    """The faces found in one image, best first."""

    boxes: np.ndarray  # [N, 4] float32: corners in pixels of the image
    scores: np.ndarray  # [N] float32
    landmarks: np.ndarray  # [N, 5, 2] float32: eyes, nose, corners of the mouth; x, y in pixels


class Localization(NamedTuple):
    """The label and the box of one image, which has one object."""

    label: np.ndarray  # [] int32: index into `Run.classes`
    score: np.ndarray  # [] float32
    box: np.ndarray  # [4] float32: corners in pixels of the original image


class Classification(NamedTuple):
    """The label of one image."""

    label: np.ndarray  # [] int32: index into `Run.classes`
    score: np.ndarray  # [] float32: the probability of the label
    probabilities: np.ndarray  # [K] float32


class Candidates(NamedTuple):
    """All boxes of a detector for one image, before non-maximum suppression."""

    boxes: np.ndarray  # [A, 4] float32: corners in pixels of the original image
    scores: np.ndarray  # [A, K] float32


Prediction = Detections | Localization | Classification


class PreparedImage(NamedTuple):
    """An image as input of a network or program, and how its pixels map to the original image."""

    image: np.ndarray  # [H, W, C] float32 in [0, 1]; of a program that resizes images: uint8
    size: tuple[int, int]  # height and width of the original
    scale: np.ndarray  # [4]: original corner = network corner * scale + offset
    offset: np.ndarray  # [4]
