"""Pictures for people: curves of a run, images with their boxes.  No display is needed."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

TRUE, PREDICTED = "lime", "red"
SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def convergence(metrics, path):
    """Training and validation loss and accuracy against the epoch, from `metrics.jsonl` lines."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in ("train", "val"):
            points = [(m["epoch"], m[split][name]) for m in metrics if m[split]]
            axes.plot(*np.array(points).reshape(-1, 2).T, marker=".", label=split)
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    low = min((m[s]["loss"] for m in metrics for s in ("train", "val") if m[s]), default=0)
    if low > 0:
        figure.axes[0].set_yscale("log")
    _write(figure, path)


def gallery(images, path, *, titles, true=None, predicted=None, columns=5):
    """N images [H, W, C] in [0, 1] in a grid, true boxes [N, 4] green and predicted boxes red.

    `titles` has one text an image; a box may be None.  Thirty images make the figure of seed 001:
    6 x 5 of them on 20 x 16 inches.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 16 / 6 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(figure.axes, images, strict=False)):
        _image(axes, image)
        axes.set_title(titles[i])
        for boxes, colour in ((true, TRUE), (predicted, PREDICTED)):
            if boxes is not None and boxes[i] is not None:
                box(axes, boxes[i], colour)
    _write(figure, path)


def roofline(rows, ceilings, path, named=10):
    """Operations a second of layers against their operations a byte, under the device's ceilings.

    `rows` have `layer`, `total`, `bytes` and `operations_per_s`; the `named` slowest are named.
    """
    shown = [row for row in rows if row.get("operations_per_s") and row["total"]]
    shown.sort(key=lambda row: row["total"] / row["operations_per_s"], reverse=True)
    dense = np.array([row["total"] / row["bytes"] for row in shown])
    rate = np.array([row["operations_per_s"] for row in shown])
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    ridge = ceilings.operations_per_s / ceilings.bytes_per_s
    reach = np.geomspace(min(dense.min(), ridge) / 3, max(dense.max(), ridge) * 3, 100)
    roof = np.minimum(ceilings.operations_per_s, ceilings.bytes_per_s * reach)
    axes.plot(reach, roof, color="black", label="measured: matrix product, copy")
    axes.scatter(dense, rate, s=20, label="layers")
    for row, x, y in zip(shown[:named], dense, rate, strict=False):
        axes.annotate(row["layer"], (x, y), fontsize=8, xytext=(4, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="operations / byte", ylabel="operations / s")
    axes.grid(alpha=0.3)
    axes.legend()
    _write(figure, path)


def window(path):
    """Show a picture file in a window, until it is closed."""
    import matplotlib.pyplot as plt  # chooses a backend, which nothing else here needs

    plt.imshow(plt.imread(path))
    plt.axis("off")
    plt.show()
    plt.close()


def box(axes, corners, colour):
    """One half-open box [4] in image pixels, drawn on the pixels' edges."""
    x0, y0, x1, y1 = np.asarray(corners) - 0.5  # imshow puts pixel centres on whole numbers
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=2))


def _image(axes, image):
    image = np.asarray(image)
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_autoscale_on(False)


def _write(figure, path):
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
