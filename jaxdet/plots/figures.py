"""Figures without a display, saved as PNG, JPEG, PDF or SVG."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxdet.types import Array

SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def single(xlabel: str, ylabel: str, *, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure with one labeled plot; size: width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def grid(count: int, columns: int, *, cell: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots in a grid, whose axes are hidden.

    cell: width and height of a plot in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(cell[0] * columns, cell[1] * rows), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every:
        axes.axis("off")
    return figure, every[:count]


def draw_image(axes: Axes, image: Array) -> None:
    """Show an image [H, W, C] of pixel values in [0, 1]; one channel is gray."""
    image = np.asarray(image)
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=1)
    axes.set_autoscale_on(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, in the format of its suffix; missing folders are created."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
