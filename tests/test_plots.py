import numpy as np
import pytest
from PIL import Image

from jaxdet import plots


def lines(epochs):
    scores = {"loss": 2.0, "accuracy": 0.5}
    return [
        {"epoch": e, "train": scores if e else None, "val": {**scores, "loss": 2.0 - e}}
        for e in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_curves_are_drawn_after_any_number_of_epochs(tmp_path, epochs):
    path = tmp_path / "plots" / "curves.png"
    plots.convergence(lines(epochs), path)
    with Image.open(path) as picture:
        assert picture.size == (1100, 400)


def colours(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    packed = np.unique(pixels @ np.array([65536, 256, 1]))
    return {(int(p) >> 16, int(p) >> 8 & 255, int(p) & 255) for p in packed}


LIME, RED = (0, 255, 0), (255, 0, 0)


def test_thirty_images_make_the_figure_of_the_seed(tmp_path):
    images, boxes = np.zeros((30, 16, 16, 1)), np.tile([2.0, 3.0, 9.0, 8.0], (30, 1))
    path = tmp_path / "figure.png"
    plots.gallery(images, path, titles=["3"] * 30, true=boxes, predicted=boxes + 4)
    with Image.open(path) as picture:
        assert picture.size == (2000, 1600)
    assert {LIME, RED} <= colours(path)


def test_titles_of_what_is_wrong_are_red(tmp_path):
    for wrong in ((False, False), (False, True)):
        plots.gallery(np.zeros((2, 8, 8, 3)), tmp_path / "a.png", titles="ab", wrong=wrong)
        assert (RED in colours(tmp_path / "a.png")) == any(wrong)


def test_accuracy_is_drawn_against_the_seconds_of_all_epochs_before(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_curve", lambda axes, *what: drawn.append(what))
    timed = [{**line, "time": {"train": 2.0, "eval": 1.0}} for line in lines(3)]
    plots.curves({"a": timed}, tmp_path / "curves.png")
    assert [(term, against) for term, _, against in drawn] == [
        ("loss", "epoch"),
        ("accuracy", "epoch"),
        ("accuracy", "seconds"),
    ]
    assert drawn[-1][1] == {"a": [(3.0, 0.5), (6.0, 0.5), (9.0, 0.5)]}


def test_only_what_is_given_is_drawn(tmp_path):
    path = tmp_path / "figure.png"
    plots.gallery(np.zeros((3, 8, 8, 3)), path, titles="abc", true=np.tile([1, 1, 4, 4], (3, 1)))
    assert LIME in colours(path)
    assert RED not in colours(path)
