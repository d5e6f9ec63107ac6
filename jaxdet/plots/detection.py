"""Images with their boxes, and the curves of detection."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from jaxdet.plots import figures

TRUE, PREDICTED = "lime", "red"
MAX_COLORED_CLASSES = 10  # classes at most that have a colour and a name of their own
MIN_SIDE = 320  # pixels of the shorter side of a picture with texts in it


def gallery(
    images,
    path,
    *,
    titles,
    true=None,
    predicted=None,
    texts=None,
    kinds=None,
    wrong=None,
    columns=5,
    cell=(4, 16 / 6),
):
    """N images [H, W, C] in [0, 1] in a grid, true boxes green and predicted boxes red.

    An image has one box [4], any number [n, 4], or None.  `titles` has one text an image, red
    where `wrong`, `texts` one a box of each image, predicted ones if there are any, on a colour by
    its number in `kinds`.  `cell` is the size of one image in inches: thirty images make the
    figure of seed 001, 6 x 5 of them on 20 x 16.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(cell[0] * columns, cell[1] * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(figure.axes, images, strict=False)):
        figures.draw_image(axes, image)
        axes.set_title(titles[i], color=PREDICTED if wrong is not None and wrong[i] else "black")
        of_image = (None if part is None else part[i] for part in (true, predicted, texts, kinds))
        _boxes(axes, *of_image)
    figures.save(figure, path)


def annotated_image(image, path, true=None, predicted=None, texts=None, kinds=None):
    """One image [H, W, C] as large as it is, or so many times as large, with boxes as in `gallery`.

    The shorter side of the picture has at least `LEAST` pixels.
    """
    height, width = np.multiply(image.shape[:2], -(-MIN_SIDE // min(image.shape[:2])))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    figures.draw_image(axes, image)
    grown = max((height + width) / 1000, 1)  # large photos are looked at from further away
    _boxes(axes, true, predicted, texts, kinds, width=1.5 * grown, size=8 * grown)
    figures.save(figure, path)


def _boxes(axes, true, predicted, texts, kinds, width=None, size=7):
    """Boxes of one image, and a text above each predicted one, or each true one."""
    given = ([] if boxes is None else boxes for boxes in (true, predicted))
    every = [np.reshape(np.asarray(boxes), (-1, 4)) for boxes in given]
    width = width or (1.2 if max(map(len, every)) > 1 else 2)
    for boxes, colour in zip(every, (TRUE, PREDICTED), strict=True):
        for corners in boxes:
            draw_box(axes, corners, colour, width)
    if texts is None:
        return
    named = every[0] if predicted is None else every[1]
    kinds = np.zeros(len(texts), int) if kinds is None else kinds
    for corners, text, kind in zip(named, texts, kinds, strict=True):
        _name(axes, corners, text, f"C{kind % 10}", size)


def _name(axes, corners, text, colour, size):
    """A small text above a box, or in it, so that it is in the picture."""
    x0, y0, x1, _ = corners
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    top, right = y0 < 0.05 * height, x0 > 0.85 * width
    place = {"va": "top" if top else "bottom", "ha": "right" if right else "left"}
    shade = {"pad": 1, "facecolor": colour, "edgecolor": "none", "alpha": 0.8}
    x, y = min(x1, width) if right else max(x0, 0), max(y0, 0)
    axes.text(x, y, text, color="white", fontsize=size, bbox=shade, clip_on=True, **place)


def assignments(images, true, marks, path, columns=3):
    """Images [H, W, C], each box of true [n, 4] in a colour, and so the cells that learn it.

    marks: for each image (points [m, 2], strides [m], box of each point [m], wanted score [m]);
    a dot is as wide as half of its cell, and as opaque as its score is high.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(6 * columns, 5 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    given = zip(figure.axes, images, true, marks, strict=False)
    for number, (axes, image, boxes, (points, strides, index, much)) in enumerate(given):
        figures.draw_image(axes, image)
        axes.set_title(f"photo {number}: {len(boxes)} boxes, {len(points)} cells")
        for i, corners in enumerate(boxes):
            draw_box(axes, corners, f"C{i % 10}")
        for point, stride, i, score in zip(points, strides, index, much, strict=True):
            alpha = 0.25 + 0.75 * float(score)
            axes.add_patch(Circle(point - 0.5, stride / 4, color=f"C{i % 10}", alpha=alpha))
    figures.save(figure, path)


def confusion_matrix(counts, names, path, title=""):
    """Counts [K, K] by what was true (rows) and what it was taken for (columns), as shares."""
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4, 0.6 * len(names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="taken for", ylabel="true", title=title)
    figures.save(figure, path)


def precision_recall(curves, recalls, path, marked=()):
    """Precision against recall, a line a class, and their mean; (precision, least score) of each.

    Both are at `recalls`, -1 where nothing is known.  Points beyond which boxes are of less than
    the `marked` scores are marked.  More than `NAMED` classes are thin grey lines.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    known = {name: (p, s) for name, (p, s) in curves.items() if (p > -1).all()}
    for name, (precision, scores) in known.items():
        many = {"color": "lightgray", "lw": 0.8} if len(known) > MAX_COLORED_CLASSES else {}
        label = f"{name} {precision.mean():.3f}"
        (line,) = axes.plot(recalls, precision, label=None if many else label, **many)
        for sign, least in zip("os^D", () if many else marked, strict=False):
            last = np.flatnonzero(scores >= least)[-1:]
            axes.plot(recalls[last], precision[last], sign, color=line.get_color(), clip_on=False)
    if len(known) > 1:
        mean = np.mean([precision for precision, _ in known.values()], 0)
        axes.plot(recalls, mean, color="black", lw=2.5, label=f"mean {mean.mean():.3f}")
    if known and len(known) <= MAX_COLORED_CLASSES:
        for sign, least in zip("os^D", marked, strict=False):
            axes.plot([], [], sign, color="gray", label=f"score {least:g}")
    axes.set(xlabel="recall", ylabel="precision, IoU .5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if known:
        axes.legend(loc="lower left")
    figures.save(figure, path)


def bar_chart(values, path, *, label, marked=()):
    """A bar a value of {name: value in [0, 1]}, and a line at each of the `marked` values."""
    figure = Figure(figsize=(7, max(2.5, 0.32 * len(values) + 1)), layout="constrained")
    axes = figure.subplots()
    for place, value in enumerate(values.values()):
        axes.barh(place, value, color="C0" if place else "black", height=0.7)
        axes.text(value + 0.01, place, f"{value:.3f}", va="center", fontsize=9)
    for value in marked:
        axes.axvline(value, color="red", ls="--", lw=1)
        clear = {"pad": 1, "facecolor": "white", "edgecolor": "none"}
        axes.text(value, -0.75, f"{value:g}", color="red", ha="center", fontsize=8, bbox=clear)
    axes.set_yticks(range(len(values)), list(values))
    axes.set(xlabel=label, xlim=(0, 1.08), ylim=(len(values) - 0.4, -1.1))
    figures.save(figure, path)


def show_file(path):
    """Show a picture file in a window, until it is closed."""
    import matplotlib.pyplot as plt  # chooses a backend, which nothing else here needs

    plt.imshow(plt.imread(path))
    plt.axis("off")
    plt.show()
    plt.close()


def draw_box(axes, corners, colour, width=2):
    """One half-open box [4] in image pixels, drawn on the pixels' edges, `width` points wide."""
    x0, y0, x1, y1 = np.asarray(corners) - 0.5  # imshow puts pixel centres on whole numbers
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width))
