"""Images with boxes, confusion matrices and precision-recall curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from jaxdet.metrics.calibration import Reliability
from jaxdet.plots import figures
from jaxdet.types import Array

TRUE, PREDICTED = "lime", "red"
MAX_COLORED_CLASSES = 10  # with more classes, curves are thin, gray and without names
MIN_SIDE = 320  # pixels of the shorter side of an annotated image
MARKERS = "os^D"
CELL_WIDTH, TITLE_LINE = 4.0, 0.22  # width of a cell, height of a line of a title, in inches
CHARACTER = 0.62  # width of a character, as a fraction of the font size
TITLE_SIZES = 6.0, 12.0  # smallest and largest font size of titles, in points


def gallery(
    images: Sequence[Array],
    path: Path,
    *,
    titles: Sequence[str],
    true: Sequence[Array | None] | None = None,
    predicted: Sequence[Array | None] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    labels: Sequence[Array] | None = None,
    wrong: Sequence[bool] | None = None,
    columns: int = 5,
    cell: tuple[float, float] | None = None,
) -> None:
    """Draw a grid of images [H, W, C] in [0, 1], with true boxes in green, predicted boxes in red.

    path: file to write, see `figures.save`.
    titles: title of each image, in red where `wrong` is true; long titles get a smaller font.
    true, predicted: for each image boxes [n, 4], one box [4], or None.
    texts: for each image, a text for each predicted box or, without predicted boxes, for each true
      box.
    labels: class index of each box with a text, by default 0; it selects the color behind the text.
    cell: width and height of a cell in inches; by default the height fits the mean aspect ratio of
      the images.
    """
    cell = cell or _fitting_cell(images, titles)
    longest = max(len(line) for title in titles for line in title.split("\n"))
    size = np.clip(72 * cell[0] / (CHARACTER * max(longest, 1)), *TITLE_SIZES)
    figure, every = figures.grid(len(images), columns, cell=cell)
    for i, (axes, image) in enumerate(zip(every, images, strict=True)):
        figures.draw_image(axes, image)
        color = PREDICTED if wrong is not None and wrong[i] else "black"
        axes.set_title(titles[i], color=color, fontsize=size)
        _draw_boxes(axes, _item(true, i), _item(predicted, i), _item(texts, i), _item(labels, i))
    figures.save(figure, path)


def annotated_image(
    image: Array,
    path: Path,
    true: Array | None = None,
    predicted: Array | None = None,
    texts: Sequence[str] | None = None,
    labels: Array | None = None,
) -> None:
    """Draw one image [H, W, C] in [0, 1] at its own size, with boxes and texts as in `gallery`.

    An image whose shorter side is below `MIN_SIDE` pixels is enlarged by a whole factor.
    """
    height, width = np.multiply(image.shape[:2], -(-MIN_SIDE // min(image.shape[:2])))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    figures.draw_image(axes, image)
    scale = max((height + width) / 1000, 1)  # large images are viewed from further away
    _draw_boxes(axes, true, predicted, texts, labels, line_width=1.5 * scale, font_size=8 * scale)
    figures.save(figure, path)


def assignments(
    images: Sequence[Array],
    true: Sequence[Array],
    cells: Sequence[tuple[Array, Array, Array, Array]],
    path: Path,
    columns: int = 3,
) -> None:
    """Draw images [H, W, C] with true boxes [n, 4] and, in the same colors, the cells of each box.

    cells: for each image, (centers [m, 2], strides [m], indices of the boxes to which the cells are
      assigned [m], target scores [m]).  A dot of half a cell's width marks each cell; a dot is the
      more opaque, the higher the score.
    """
    figure, every = figures.grid(len(images), columns, cell=(6, 5))
    given = zip(every, images, true, cells, strict=True)
    for number, (axes, image, boxes, (centers, strides, indices, scores)) in enumerate(given):
        figures.draw_image(axes, image)
        axes.set_title(f"image {number}: {len(boxes)} boxes, {len(centers)} cells")
        for i, corners in enumerate(boxes):
            draw_box(axes, corners, f"C{i % 10}")
        for center, stride, i, score in zip(centers, strides, indices, scores, strict=True):
            alpha = 0.25 + 0.75 * float(score)
            axes.add_patch(Circle(center - 0.5, stride / 4, color=f"C{i % 10}", alpha=alpha))
    figures.save(figure, path)


def confusion_matrix(counts: Array, names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw counts [K, K] by true class (rows) and predicted class (columns).

    The shade of a cell is its fraction of the counts in its row.
    """
    counts = np.asarray(counts)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4, 0.6 * len(names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if fractions[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figures.save(figure, path)


def precision_recall(
    curves: Mapping[str, tuple[Array, Array]],
    recalls: Array,
    path: Path,
    marked: Sequence[float] = (),
) -> None:
    """Plot precision against recall, with one curve per class and the mean of the curves.

    curves: {class: (precision [R], score threshold [R])} at each of `recalls` [R]; a class without
      objects has -1 and is left out.
    marked: up to four score thresholds; for each, a marker on a curve shows the highest recall that
      the class reaches at this threshold.
    Beyond `MAX_COLORED_CLASSES` classes, curves are thin gray lines without markers.
    """
    figure, axes = figures.single("recall", "precision at IoU 0.5", size=(7, 5))
    known = {name: (p, s) for name, (p, s) in curves.items() if (p > -1).all()}
    colored = len(known) <= MAX_COLORED_CLASSES
    for name, (precision, scores) in known.items():
        label = f"{name} {precision.mean():.3f}" if colored else None
        (line,) = axes.plot(recalls, precision, label=label, lw=1.5 if colored else 0.8)
        if not colored:
            line.set_color("lightgray")
        for marker, score in zip(MARKERS, marked if colored else (), strict=False):
            last = np.flatnonzero(scores >= score)[-1:]
            axes.plot(recalls[last], precision[last], marker, color=line.get_color(), clip_on=False)
    if len(known) > 1:
        mean = np.mean([precision for precision, _ in known.values()], 0)
        axes.plot(recalls, mean, color="black", lw=2.5, label=f"mean {mean.mean():.3f}")
    if known and colored:
        for marker, score in zip(MARKERS, marked, strict=False):
            axes.plot([], [], marker, color="gray", label=f"score {score:g}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if known:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figures.save(figure, path)


def reliability(found: Reliability, path: Path, *, title: str = "") -> None:
    """Draw the accuracy of each bin of scores beside the diagonal of calibrated scores.

    The size of a point shows how many scores the bin has.
    """
    figure, axes = figures.single("score", "fraction that is correct", size=(5, 4.5))
    axes.plot([0, 1], [0, 1], color="gray", ls="--", lw=1, label="calibrated")
    (line,) = axes.plot(found.score, found.accuracy, lw=1)
    sizes = 10 + 150 * found.count / max(found.count.max(), 1)
    axes.scatter(found.score, found.accuracy, sizes, color=line.get_color(), label="boxes")
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title)
    axes.legend(loc="upper left")
    figures.save(figure, path)


def bar_chart(values: Mapping[str, float], path: Path, *, label: str) -> None:
    """Draw a horizontal bar for each of {name: value in [0, 1]}, the first bar in black.

    label: name of the axis of values.
    """
    figure = Figure(figsize=(7, max(2.5, 0.32 * len(values) + 1)), layout="constrained")
    axes = figure.subplots()
    for position, value in enumerate(values.values()):
        axes.barh(position, value, color="C0" if position else "black", height=0.7)
        axes.text(value + 0.01, position, f"{value:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), list(values))
    axes.set(xlabel=label, xlim=(0, 1.08), ylim=(len(values) - 0.4, -1.1))
    figures.save(figure, path)


def show_file(path: Path) -> None:
    """Show an image file in a window, and return once the window is closed."""
    import matplotlib.pyplot as plt  # selects a backend, which nothing else here needs

    plt.imshow(plt.imread(path))
    plt.axis("off")
    plt.show()
    plt.close()


def draw_box(axes: Axes, corners: Array, color: str, width: float = 2) -> None:
    """Draw a half-open box [4], in pixels, along the edges of the pixels.

    width: width of the line in points.
    """
    x0, y0, x1, y1 = np.asarray(corners) - 0.5  # imshow centers pixels on whole numbers
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, lw=width))


def _fitting_cell(images, titles) -> tuple[float, float]:
    """(width, height) in inches of a cell with a title and an image of mean aspect ratio."""
    aspect = np.mean([np.shape(image)[0] / np.shape(image)[1] for image in images])
    lines = 1 + max(title.count("\n") for title in titles)
    return CELL_WIDTH, CELL_WIDTH * float(np.clip(aspect, 0.25, 4)) + TITLE_LINE * lines


def _item(part: Sequence[Any] | None, i: int) -> Any:
    return None if part is None else part[i]


def _draw_boxes(axes, true, predicted, texts, labels, line_width=None, font_size=7) -> None:
    """Draw the boxes of an image; texts are above predicted boxes or, without any, true boxes."""
    # The first box, which has the highest score, is drawn last, on top.
    given = ([] if boxes is None else boxes for boxes in (true, predicted))
    true_boxes, predicted_boxes = (np.reshape(np.asarray(boxes), (-1, 4)) for boxes in given)
    line_width = line_width or (1.2 if max(len(true_boxes), len(predicted_boxes)) > 1 else 2)
    for boxes, color in ((true_boxes, TRUE), (predicted_boxes, PREDICTED)):
        for corners in boxes[::-1]:
            draw_box(axes, corners, color, line_width)
    if texts is None:
        return
    described = true_boxes if predicted is None else predicted_boxes
    labels = np.zeros(len(texts), int) if labels is None else labels
    for corners, text, label in reversed([*zip(described, texts, labels, strict=True)]):
        _draw_text(axes, corners, text, f"C{label % 10}", font_size)


def _draw_text(axes, corners, text, color, size) -> None:
    """Write a small text above a box, or inside it where it would extend beyond the image."""
    x0, y0, x1, _ = corners
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    top, right = y0 < 0.05 * height, x0 > 0.85 * width
    anchor = {"va": "top" if top else "bottom", "ha": "right" if right else "left"}
    box = {"pad": 1, "facecolor": color, "edgecolor": "none", "alpha": 0.8}
    x, y = min(x1, width) if right else max(x0, 0), max(y0, 0)
    axes.text(x, y, text, color="white", fontsize=size, bbox=box, clip_on=True, **anchor)
