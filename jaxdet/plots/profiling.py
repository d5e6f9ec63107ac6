"""Roofline plot of a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.plots import figures


def roofline(
    rows: Sequence[dict[str, Any]],
    path: Path,
    *,
    operations_per_s: float,
    bytes_per_s: float,
    named: int = 10,
) -> None:
    """Plot operations per second of layers against their operations per byte, with the roofline.

    rows: `layer`, `total` operations, `bytes` and `operations_per_s` of each layer.  Rows without
      operations or without a time are left out; at least one must remain.
    operations_per_s, bytes_per_s: peaks of the device, which determine the roofline.
    named: number of layers with a label, beginning with the slowest.
    """
    shown = [row for row in rows if row.get("operations_per_s") and row["total"]]
    shown.sort(key=lambda row: row["total"] / row["operations_per_s"], reverse=True)
    intensity = np.array([row["total"] / row["bytes"] for row in shown])
    rate = np.array([row["operations_per_s"] for row in shown])
    figure, axes = figures.single("operations / byte", "operations / s", size=(9, 6))
    ridge = operations_per_s / bytes_per_s
    reach = np.geomspace(min(intensity.min(), ridge) / 3, max(intensity.max(), ridge) * 3, 100)
    roof = np.minimum(operations_per_s, bytes_per_s * reach)
    axes.plot(reach, roof, color="black", label="measured: matrix product, copy")
    axes.scatter(intensity, rate, s=20, label="layers")
    for row, x, y in zip(shown[:named], intensity, rate, strict=False):
        axes.annotate(row["layer"], (x, y), fontsize=8, xytext=(4, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log")
    axes.legend()
    figures.save(figure, path)
