"""Where sliding a network window by window and convolving it with the image give the same.

`norms` compares the outputs of the two forms of a network.  `check` sets what
`windows.differences` says of a chain beside what random weights show, window by window.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.lib import sliding
from jaxdet import tables
from jaxdet.models.sliding import SlidingNet
from jaxdet.ops import windows

TOLERANCE = 1e-4  # of outputs near 1; float32 sums in another order differ by about 1e-6


class Case(NamedTuple):
    """One row of the check."""

    arch: str  # the chain before the first dense layer, as of `windows.parse`
    window: int
    stride: int  # of sliding; 0 is the product of the layers' strides
    size: int  # side of the image
    question: str = ""  # of seed 001


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
    "arch": "features",
    "window": "window",
    "stride": "stride",
    "size": "size",
    "convolutional": "convolutional",
    "sequential": "sequential",
    "predicted": "formulas say",
    "measured": "random weights show",
    "difference": "largest difference",
    "why": "why",
    "question": "question",
}


def norms(net, size):
    """Row of the norms of the difference between the two forms on one image of `size` pixels.

    Once with bell-shaped weights, once with small whole numbers, where float32 rounds nothing off
    and the order of a sum does not matter.
    """
    slid, dense = sliding.both(sliding.pair(net), image(size), _stride(net))
    forms = sliding.pair(net, sample=signs)
    whole = np.subtract(*sliding.both(forms, np.round(image(size)), _stride(net)))
    return {
        "size": size,
        "output": list(slid.shape),
        "norm": norm(slid),
        "difference": norm(slid - dense),
        "largest": float(abs(slid - dense).max()),
        "whole_numbers": norm(whole),
    }


def image(size, batch=1):
    """Images [B, size, size, 3] of noise in [0, 1), float32."""
    return np.random.default_rng(1).random((batch, size, size, 3), np.float32)


def signs(draw, shape):
    """Weights -1, 0 and 1, one in eight not 0: no partial sum of Andrew's network leaves 2^24."""
    return np.float32(draw.integers(-1, 2, shape) * (draw.random(shape) < 3 / 16))


def norm(x):
    """Euclidean norm of all numbers of an array."""
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def check(cases):
    """A row for each case: windows of both forms, verdict of the formulas and of the numbers."""
    return [row(case) for case in cases]


def row(case):
    """Row of one case."""
    net = network(case)
    stride = case.stride or _stride(net)
    slid, dense = sliding.both(sliding.pair(net), image(case.size), stride)
    reasons = windows.differences(net.stages, case.window, case.size, stride)
    difference = float(abs(slid - dense).max()) if slid.shape == dense.shape else None
    same = difference is not None and difference < TOLERANCE
    return {
        **case._asdict(),
        "stride": stride,
        "convolutional": list(dense.shape[1:3]),
        "sequential": list(slid.shape[1:3]),
        "predicted": "differ" if reasons else "coincide",
        "measured": "coincide" if same else "differ",
        "difference": difference,
        "why": "; ".join(reasons),
    }


def network(case):
    """A small network with the chain and window of a case."""
    stages = windows.parse(case.arch)
    widths = (6,) * sum(layer.kind == "conv" for layer in stages)
    return SlidingNet(stages, widths, dense=(8,), outputs=4, window=case.window, activation=None)


def text(rows):
    """Markdown of the rows of `check`, and how often formulas and numbers agree."""
    agreed = sum(row["predicted"] == row["measured"] for row in rows)
    note = f"Formulas and numbers agree in {agreed} of {len(rows)} rows."
    return f"{tables.to_markdown(rows, COLUMNS)}\n\n{note}"


def _stride(net):
    """The stride at which sliding is what the convolutional form does."""
    return windows.receptive_field(net.chain()).stride
