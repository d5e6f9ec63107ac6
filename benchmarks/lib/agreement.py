"""Conditions under which the two forms of a sliding-window network agree.

`difference_norms` compares the outputs of both forms of a network. `check` compares what
`windows.differences` predicts with the outputs of networks with random weights.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lib import sliding, units
from jaxdet.models.sliding import SlidingNet
from jaxdet.ops import windows

TOLERANCE = 1e-4  # of outputs near 1; float32 sums in another order differ by about 1e-6


class Case(NamedTuple):
    """A network, an image and a stride for which both forms are compared."""

    arch: str  # the layers before the first dense one, as read by `windows.parse`
    window: int
    stride: int  # step of the sliding window; 0 is the product of the layers' strides
    size: int  # side of the image
    question: str = ""  # question of assignment 1, see docs/assignments.md


CASES = (
    Case("c5,p2", 14, 2, 16, "3"),
    Case("c5,p2", 14, 2, 28, "4"),
    Case("c5,p2", 14, 2, 17, "4, odd size"),
    Case("c5,p2", 14, 2, 64, "4"),
    Case("c5,p2", 14, 1, 28, "4, other stride"),
    Case("c5,p2", 15, 2, 16, "4, odd window"),
    Case("c5,p2", 15, 2, 17, "4, odd window"),
    Case("c5,p2", 15, 2, 28, "4, odd window"),
    Case("c5p2,p2", 14, 2, 28, "4, padding"),
    Case("c5,p2,c3", 14, 2, 28, "6"),
    Case("c5,p2,c3s2", 14, 2, 28, "6, strided"),
    Case("c5,p2,c3s2", 14, 4, 28, "6, strided"),
    Case("c5,p2,p2", 16, 2, 28, "7"),
    Case("c5,p2,p2", 16, 4, 28, "7"),
    Case("c5,p2,p2", 14, 4, 28, "7, window 14"),
    Case("c5,p2,c3,p2", 16, 2, 28, "6 and 7"),
    Case("c5,p2,c3,p2", 16, 4, 28, "6 and 7"),
    Case("c5,p2,c3,p2", 14, 4, 28, "6 and 7, window 14"),
)
COLUMNS = {
    "arch": "layers",
    "window": "window",
    "stride": "stride",
    "size": "size",
    "convolutional": "convolutional",
    "sequential": "sequential",
    "predicted": "formulas",
    "measured": "random weights",
    "difference": "largest difference",
    "why": "why",
    "question": "question",
}


def difference_norms(net: SlidingNet, size: int) -> dict[str, Any]:
    """Norms of the difference between both forms on one image of size x size pixels.

    The difference is measured with normal weights, and with small integer weights, for which
    float32 is exact and the order of a sum does not matter.
    """
    image, stride = random_images(size), _dense_stride(net)
    slid, dense = sliding.run_both(sliding.build_pair(net), image, stride)
    pair = sliding.build_pair(net, sample=sparse_signs)
    exact = np.subtract(*sliding.run_both(pair, np.round(image), stride))
    return {
        "size": size,
        "output": list(slid.shape),
        "norm": _norm(slid),
        "difference": _norm(slid - dense),
        "largest": float(abs(slid - dense).max()),
        "integer_weights": _norm(exact),
    }


def random_images(size: int, batch: int = 1) -> np.ndarray:
    """Images [B, size, size, 3], float32, uniform in [0, 1)."""
    return np.random.default_rng(1).random((batch, size, size, 3), np.float32)


def sparse_signs(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights -1, 0 and 1, of which one in eight is not 0.

    With these weights, no partial sum of `NgSlidingNet` exceeds 2^24.
    """
    signs = draw.integers(-1, 2, shape) * (draw.random(shape) < 3 / 16)
    return signs.astype(np.float32)


def check(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """A row per case: windows of both forms, and whether they agree, as predicted and measured."""
    return [_check_case(case) for case in cases]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Table of the rows of `check`, and a line on how often formulas and numbers agree."""
    right = sum(row["predicted"] == row["measured"] for row in rows)
    note = f"Formulas and numbers agree in {right} of {len(rows)} rows."
    return f"{units.markdown_table(rows, COLUMNS)}\n\n{note}"


def _check_case(case):
    net = _build_net(case)
    stride = case.stride or _dense_stride(net)
    slid, dense = sliding.run_both(sliding.build_pair(net), random_images(case.size), stride)
    reasons = windows.differences(net.stages, case.window, case.size, stride)
    difference = float(abs(slid - dense).max()) if slid.shape == dense.shape else None
    same = difference is not None and difference < TOLERANCE
    return {
        **case._asdict(),
        "stride": stride,
        "convolutional": list(dense.shape[1:3]),
        "sequential": list(slid.shape[1:3]),
        "predicted": "differ" if reasons else "agree",
        "measured": "agree" if same else "differ",
        "difference": difference,
        "why": "; ".join(reasons),
    }


def _build_net(case):
    """A small network with the layers and the window of a case."""
    stages = windows.parse(case.arch)
    channels = (6,) * sum(layer.kind == "conv" for layer in stages)
    return SlidingNet(
        stages, channels, fc_widths=(8,), outputs=4, window=case.window, activation=None
    )


def _dense_stride(net):
    """The stride at which the convolutional form slides."""
    return windows.receptive_field(net.chain()).stride


def _norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))
