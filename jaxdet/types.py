"""The alphabet: axes, batch keys, and the records that the rooms hand to each other.

Axes: B batch, H rows, W columns, C channels, K classes, A cells or anchors, G true-box slots,
P predictions, D embedding.  A box is its corners `x0 y0 x1 y1`: float32, in pixels of the
network's input image, x to the right, y down, half-open (a single lit pixel has area 1).

Batch keys (a task uses the subset it needs):
`image [B,H,W,C]`, `label [B]`, `boxes [B,G,4]`, `labels [B,G]`, `valid [B,G]`, `crowd [B,G]`,
`area [B,G]`, `real [B]` (0 marks a row that only pads), `id [B]`, `size [B,2]` (original height,
width), `to_original [B,4]` (scale and offset that take network pixels back).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct

Array = Any  # a jax.Array, traced or not; or a NumPy array on the host
Batch = dict[str, Array]
Tree = Any  # a pytree of arrays


class At(NamedTuple):
    """Where in the run a step stands; handed to whatever needs to know."""

    train: bool  # static: augmentation, dropout and batch statistics on or off
    step: Array  # traced: parameter updates so far
    epoch: Array  # traced: whole passes so far
    hyper: dict[str, Array]  # traced numbers that a sweep may vary: rates, loss weights
    axis: str | None = None  # name of the device axis under pmap, None under jit
    scale: float = 1.0  # static: sides of training images, as a share of their own


class Task(NamedTuple):
    """What one system adds to the shared loop: six pure functions.

    The terms of `loss` are shares too: summed over devices they are means over the real rows.
    """

    init: Callable  # key, batch -> variables
    augment: Callable  # keys [B], batch, at -> batch
    loss: Callable  # variables, batch, key, at -> share, (new_stats, {term: share})
    predict: Callable  # variables, images -> predictions, leading axis B
    measure: Callable  # predictions, batch -> {name: rows [B, ...]}
    report: Callable  # {name: rows [N, ...]} on the host -> {name: value}


@struct.dataclass
class TrainState:
    """All that a run carries from one step to the next, and all that a checkpoint holds."""

    step: Array  # int32: steps done
    params: Tree
    stats: Tree  # batch-norm running statistics; {} where there are none
    opt_state: Tree
    ema: Tree  # {"params", "stats"} moving averages; {} when off
    hyper: dict[str, Array]
    key: Array  # root of the fold_in chain
    book: dict[str, Any]  # what resuming needs besides: sums, best score, patience, first bad step
