from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxdet.metrics import calibration
from jaxdet.plots import detection as detection_plots
from jaxdet.plots import figures
from jaxdet.plots import training as training_plots


def lines(epochs):
    scores = {"loss": 2.0, "accuracy": 0.5}
    return [
        {"epoch": e, "train": scores if e else None, "val": {**scores, "loss": 2.0 - e}}
        for e in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_learning_curves_of_any_number_of_epochs(tmp_path, epochs):
    path = tmp_path / "plots" / "curves.png"
    training_plots.learning_curves(lines(epochs), path)
    with Image.open(path) as picture:
        assert picture.size == (1100, 400)


def colors(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    packed = np.unique(pixels @ np.array([65536, 256, 1]))
    return {(int(p) >> 16, int(p) >> 8 & 255, int(p) & 255) for p in packed}


LIME, RED = (0, 255, 0), (255, 0, 0)


def test_thirty_images_fill_a_20_by_16_inch_figure(tmp_path):
    images, boxes = np.zeros((30, 16, 16, 1)), np.tile([2.0, 3.0, 9.0, 8.0], (30, 1))
    path = tmp_path / "figure.png"
    options = {"true": boxes, "predicted": boxes + 4, "cell": (4, 16 / 6)}
    detection_plots.gallery(images, path, titles=["3"] * 30, **options)
    with Image.open(path) as picture:
        assert picture.size == (2000, 1600)
    assert {LIME, RED} <= colors(path)


def test_titles_of_wrong_predictions_are_red(tmp_path):
    for wrong in ((False, False), (False, True)):
        detection_plots.gallery(
            np.zeros((2, 8, 8, 3)), tmp_path / "a.png", titles="ab", wrong=wrong
        )
        assert (RED in colors(tmp_path / "a.png")) == any(wrong)


def test_accuracy_is_also_drawn_against_the_cumulative_seconds(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training_plots, "_draw_curves", lambda axes, *args: drawn.append(args))
    timed = [{**line, "time": {"train": 2.0, "eval": 1.0}} for line in lines(3)]
    training_plots.compare_runs({"a": timed}, tmp_path / "curves.png")
    assert [(term, against) for term, _, against in drawn] == [
        ("loss", "epoch"),
        ("accuracy", "epoch"),
        ("accuracy", "seconds"),
    ]
    assert drawn[-1][1] == {"a": [(3.0, 0.5), (6.0, 0.5), (9.0, 0.5)]}


def test_only_the_given_boxes_are_drawn(tmp_path):
    path = tmp_path / "figure.png"
    detection_plots.gallery(
        np.zeros((3, 8, 8, 3)), path, titles="abc", true=np.tile([1, 1, 4, 4], (3, 1))
    )
    assert LIME in colors(path)
    assert RED not in colors(path)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_annotated_images_keep_their_size_and_boxes_their_place(tmp_path):
    path, boxes = tmp_path / "a.png", np.float32([[100, 50, 300, 200]])
    detection_plots.annotated_image(np.zeros((400, 600, 3)), path, true=boxes + 90, predicted=boxes)
    drawn = pixels(path)
    assert drawn.shape == (400, 600, 3)
    for color, moved in ((RED, 0), (LIME, 90)):
        rows, columns = np.nonzero((abs(drawn - color) < 40).all(-1))
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(found, boxes[0] + moved, atol=2)


@pytest.mark.parametrize("x0, y0", [(50, 0), (50, 100), (390, 100), (390, 0)])
def test_texts_stay_inside_the_image_for_boxes_at_its_edges(tmp_path, x0, y0):
    boxes = np.float32([[x0, y0, x0 + 150, 200]])
    pictures = []
    for texts in (None, ["cell 0.9"]):
        detection_plots.annotated_image(
            np.zeros((400, 400, 3)), tmp_path / "a.png", None, boxes, texts, [2]
        )
        pictures.append(pixels(tmp_path / "a.png"))
    assert (pictures[0] != pictures[1]).any(-1).sum() > 500


def test_the_text_of_the_best_box_covers_those_of_others(tmp_path):
    boxes = np.tile(np.float32([50, 100, 200, 200]), (2, 1))
    for labels, best in (((0, 3), "blue"), ((3, 0), "red")):
        detection_plots.annotated_image(
            np.zeros((400, 400, 3)), tmp_path / "a.png", None, boxes, ["    ", "    "], labels
        )
        red, _, blue = pixels(tmp_path / "a.png")[94, 54]
        assert (blue > red) == (best == "blue")


def test_small_images_are_enlarged(tmp_path):
    detection_plots.annotated_image(np.zeros((30, 50, 1)), tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape == (330, 550, 3)


CURVE = np.linspace(1, 0, 11), np.linspace(0.9, 0, 11)


@pytest.mark.parametrize("classes", [0, 1, 3, 10, 11, 80])
def test_precision_recall_of_any_number_of_classes(tmp_path, classes, monkeypatch):
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda *a: drawn.append(a[0]) or save(*a))
    curves = {f"class {i}": CURVE for i in range(classes)}
    curves["unknown"] = (-np.ones(11), -np.ones(11))
    detection_plots.precision_recall(curves, np.linspace(0, 1, 11), tmp_path / "a.png", (0.1, 0.5))
    (axes,) = drawn[0].axes
    named = [text.get_text() for text in axes.get_legend().get_texts()] if classes else []
    assert ("mean 0.500" in named) == (classes > 1)
    assert len(named) == (classes + 2 if 0 < classes <= 10 else bool(classes)) + (1 < classes <= 10)
    points = [line.get_xydata() for line in axes.lines if line.get_marker() == "s"]
    if classes == 1:  # the last recall with a score of at least .5
        np.testing.assert_allclose(points[0], [[0.4, 0.6]])


def test_bars_have_their_values(tmp_path, monkeypatch):
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda *a: drawn.append(a[0]) or save(*a))
    detection_plots.bar_chart({"all": 0.5, "a": 0.25}, tmp_path / "a.png", label="mAP")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25]
    assert not axes.lines
    assert pixels(tmp_path / "a.png").any()


def test_reliability_has_a_point_for_each_bin_that_is_not_empty(tmp_path, monkeypatch):
    scores, correct = np.array([0.1, 0.15, 0.9]), np.array([True, False, True])
    found = calibration.reliability(scores, correct, 4)
    draw = partial(detection_plots.reliability, found, tmp_path / "a.png", title="t")
    (axes,) = drawn_figure(monkeypatch, draw).axes
    points = np.ma.filled(axes.collections[0].get_offsets(), np.nan)
    np.testing.assert_allclose(
        points[np.isfinite(points).all(1)], [[0.125, 0.5], [0.9, 1]], rtol=1e-6
    )
    assert pixels(tmp_path / "a.png").any()


def drawn_figure(monkeypatch, draw):
    """The figure that a function draws."""
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda *a: drawn.append(a[0]) or save(*a))
    draw()
    return drawn[0]


@pytest.mark.parametrize(
    "losses, ticks", [((40, 2.7), ["5", "10", "20"]), ((3.2, 2.4), None)], ids=["log", "linear"]
)
def test_ticks_of_losses_are_plain_numbers_and_of_epochs_whole(
    tmp_path, monkeypatch, losses, ticks
):
    metrics = [
        {"epoch": e, "train": None, "val": {"loss": loss, "accuracy": 0.5}}
        for e, loss in enumerate(losses)
    ]
    draw = partial(training_plots.learning_curves, metrics, tmp_path / "a.png")
    axes = drawn_figure(monkeypatch, draw).axes[0]
    low, high = axes.get_ylim()
    shown = [
        text.get_text() for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high
    ]
    assert axes.get_yscale() == ("log" if ticks else "linear")
    assert not ticks or shown == ticks
    assert all(float(text) for text in shown) and len(shown) > 2
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_images_of_a_gallery_fill_their_cells_and_titles_do_not_overlap(tmp_path, monkeypatch):
    title = "run: airplanes/image_0001.jpg\ntrue airplanes, predicted motorcycles, IoU 0.42"
    draw = partial(
        detection_plots.gallery,
        np.zeros((6, 40, 100, 3)),
        tmp_path / "a.png",
        titles=[title] * 6,
        columns=3,
    )
    figure = drawn_figure(monkeypatch, draw)
    area = sum(axes.get_position().width * axes.get_position().height for axes in figure.axes)
    assert area > 0.7
    renderer = figure.canvas.get_renderer()
    spans = [axes.title.get_window_extent(renderer) for axes in figure.axes[:3]]
    assert spans[0].x0 >= 0 and spans[0].x1 < spans[1].x0 and spans[1].x1 < spans[2].x0
