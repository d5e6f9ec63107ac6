"""Pictures for people: curves of a run, images with their boxes.  No display is needed."""

from itertools import accumulate

import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from jaxdet.metrics.detection import THRESHOLDS

TRUE, PREDICTED = "lime", "red"
NAMED = 10  # classes at most that have a colour and a name of their own
STYLES = cycler(ls=["-", "--", ":"]) * rcParams["axes.prop_cycle"]  # of several runs
LEAST = 320  # pixels of the shorter side of a picture with texts in it
SUFFIXES = (".png", ".jpg", ".pdf", ".svg")
SCORES = ("iou", "map", "map50")  # of validation alone
CURVES = ("loss", "accuracy", "iou")  # of several runs


def convergence(metrics, path):
    """Each term of the loss and what else both splits have, and the scores of validation.

    Against the epoch, from `metrics.jsonl` lines.
    """
    trained = [name for line in metrics if line["train"] for name in line["train"]]
    both = {*trained} or {"loss", "accuracy"} & {*metrics[0]["val"]}
    scores = [name for name in SCORES if name in metrics[-1]["val"] and name not in both]
    terms = sorted(both, key=lambda name: (name != "loss", name)) + scores
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes in every[len(terms) :]:
        axes.axis("off")
    for axes, term in zip(every, terms, strict=False):
        points = {
            s: [(m["epoch"], m[s][term]) for m in metrics if term in (m[s] or ())]
            for s in ("train", "val")
        }
        _curve(axes, term, {s: p for s, p in points.items() if p or term in both})
        axes.legend()
        for least in THRESHOLDS if term == "map" else ():
            axes.axhline(least, color="red", ls="--", lw=1)
    _write(figure, path)


def curves(metrics_by_name, path):
    """Validation loss, accuracy and IoU of several runs against the epoch: terms that all have.

    `metrics_by_name` has the `metrics.jsonl` lines of each run.  Where all have their times and an
    accuracy, that is drawn against the seconds of the run as well.
    """
    lines = [line for of_run in metrics_by_name.values() for line in of_run]
    terms = [name for name in CURVES if all(name in line["val"] for line in lines)]
    places = [(term, "epoch") for term in terms]
    if lines and "accuracy" in terms and all("time" in line for line in lines):
        places.append(("accuracy", "seconds"))
    size = (5.5 * len(places), 4 + 0.2 * len(metrics_by_name))
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(1, len(places), squeeze=False).flat
    for axes, (term, against) in zip(every, places, strict=True):
        points = {}
        for name, of_run in metrics_by_name.items():
            seconds = accumulate(sum(line["time"].values()) for line in of_run)
            at = seconds if against == "seconds" else (line["epoch"] for line in of_run)
            points[name] = [(x, line["val"][term]) for x, line in zip(at, of_run, strict=True)]
        axes.set_prop_cycle(STYLES)
        _curve(axes, term, points, against)
        axes.set_title("validation")
    if places:
        named = figure.axes[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower left", fontsize=8)  # as long as names may be
    _write(figure, path)


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
        _image(axes, image)
        axes.set_title(titles[i], color=PREDICTED if wrong is not None and wrong[i] else "black")
        of_image = (None if part is None else part[i] for part in (true, predicted, texts, kinds))
        _boxes(axes, *of_image)
    _write(figure, path)


def annotated(image, path, true=None, predicted=None, texts=None, kinds=None):
    """One image [H, W, C] as large as it is, or so many times as large, with boxes as in `gallery`.

    The shorter side of the picture has at least `LEAST` pixels.
    """
    height, width = np.multiply(image.shape[:2], -(-LEAST // min(image.shape[:2])))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    _image(axes, image)
    grown = max((height + width) / 1000, 1)  # large photos are looked at from further away
    _boxes(axes, true, predicted, texts, kinds, width=1.5 * grown, size=8 * grown)
    _write(figure, path)


def _boxes(axes, true, predicted, texts, kinds, width=None, size=7):
    """Boxes of one image, and a text above each predicted one, or each true one."""
    given = ([] if boxes is None else boxes for boxes in (true, predicted))
    every = [np.reshape(np.asarray(boxes), (-1, 4)) for boxes in given]
    width = width or (1.2 if max(map(len, every)) > 1 else 2)
    for boxes, colour in zip(every, (TRUE, PREDICTED), strict=True):
        for corners in boxes:
            box(axes, corners, colour, width)
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


def assigned(images, true, marks, path, columns=3):
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
        _image(axes, image)
        axes.set_title(f"photo {number}: {len(boxes)} boxes, {len(points)} cells")
        for i, corners in enumerate(boxes):
            box(axes, corners, f"C{i % 10}")
        for point, stride, i, score in zip(points, strides, index, much, strict=True):
            alpha = 0.25 + 0.75 * float(score)
            axes.add_patch(Circle(point - 0.5, stride / 4, color=f"C{i % 10}", alpha=alpha))
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


def confusion(counts, names, path, title=""):
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
    _write(figure, path)


def precision_recall(curves, recalls, path, marked=()):
    """Precision against recall, a line a class, and their mean; (precision, least score) of each.

    Both are at `recalls`, -1 where nothing is known.  Points beyond which boxes are of less than
    the `marked` scores are marked.  More than `NAMED` classes are thin grey lines.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    known = {name: (p, s) for name, (p, s) in curves.items() if (p > -1).all()}
    for name, (precision, scores) in known.items():
        many = {"color": "lightgray", "lw": 0.8} if len(known) > NAMED else {}
        label = f"{name} {precision.mean():.3f}"
        (line,) = axes.plot(recalls, precision, label=None if many else label, **many)
        for sign, least in zip("os^D", () if many else marked, strict=False):
            last = np.flatnonzero(scores >= least)[-1:]
            axes.plot(recalls[last], precision[last], sign, color=line.get_color(), clip_on=False)
    if len(known) > 1:
        mean = np.mean([precision for precision, _ in known.values()], 0)
        axes.plot(recalls, mean, color="black", lw=2.5, label=f"mean {mean.mean():.3f}")
    if known and len(known) <= NAMED:
        for sign, least in zip("os^D", marked, strict=False):
            axes.plot([], [], sign, color="gray", label=f"score {least:g}")
    axes.set(xlabel="recall", ylabel="precision, IoU .5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if known:
        axes.legend(loc="lower left")
    _write(figure, path)


def bars(values, path, *, label, marked=()):
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
    _write(figure, path)


def window(path):
    """Show a picture file in a window, until it is closed."""
    import matplotlib.pyplot as plt  # chooses a backend, which nothing else here needs

    plt.imshow(plt.imread(path))
    plt.axis("off")
    plt.show()
    plt.close()


def box(axes, corners, colour, width=2):
    """One half-open box [4] in image pixels, drawn on the pixels' edges, `width` points wide."""
    x0, y0, x1, y1 = np.asarray(corners) - 0.5  # imshow puts pixel centres on whole numbers
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width))


def _curve(axes, term, points, against="epoch"):
    """Lines through points [(x, value)], one a label; a loss that allows it on a log scale."""
    for label, of_label in points.items():
        axes.plot(*np.array(of_label).reshape(-1, 2).T, marker=".", label=label)
    axes.set(xlabel=against, ylabel=term)
    axes.grid(alpha=0.3)
    low = min((value for of_label in points.values() for _, value in of_label), default=0)
    if term == "loss" and low > 0:
        axes.set_yscale("log")


def _image(axes, image):
    image = np.asarray(image)
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_autoscale_on(False)


def _write(figure, path):
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
