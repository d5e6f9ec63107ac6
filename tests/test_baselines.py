import sys

import numpy as np
import pytest

from jaxdet import baselines, configs
from jaxdet.configs.objects import Config
from jaxdet.errors import InputError
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import classification as classification_metrics
from jaxdet.tasks import localize
from tests.cli.test_compare import made_up

cv2 = pytest.importorskip("cv2")
if not hasattr(cv2, "CascadeClassifier"):
    pytest.skip("OpenCV 5 has no cascades", allow_module_level=True)

HYPER = {"class_weight": 0.5, "box_weight": 2.0, "dropout": 1.0}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """The made-up photos as a system of objects."""
    root = made_up(tmp_path_factory.mktemp("classic") / "data", 60)
    config = Config(root=str(root), size=80, cut_val=0.2, cut_test=0.3)
    return config, configs.build("objects", config)


def scores(system, **changes):
    """Scores of the test split."""
    config, made = system
    given = {"box_loss": "ciou", "hyper": HYPER, "root": config.root, "splits": made.splits}
    given |= {"split": "test", "classes": made.about["classes"], **changes}
    return baselines.evaluate(**given)


def test_easy_photos_are_told_apart(system):
    found = scores(system)
    assert list(found) == [baselines.HOG, baselines.HAAR]
    hog, haar = found.values()
    assert hog["accuracy"] > 0.9
    assert hog["iou"] > 0.6
    assert hog["loss"] < 0.5 * np.log(3) + 2 * 0.4  # chance alone, and boxes that are near
    assert haar["labels"]["face"]["accuracy"] > 0.8
    assert haar["labels"]["face"]["iou"] > 0.6
    assert all(of["seconds"] > 0 for of in found.values())


def test_the_cascade_gives_all_else_the_most_frequent_other_label_and_its_mean_box(system):
    config, made = system
    train, test = made.splits["train"], made.splits["test"]
    cascade = baselines.fit_haar(train, made.about["classes"], config.root)
    logits, box = cascade.answer(cascade.photos(test))
    label = train.arrays["label"]
    other = max((1, 2), key=lambda i: (label == i).sum())
    given, face = logits.argmax(1), 0
    assert set(given) == {face, other}
    assert not (given[test.arrays["label"] != face] == face).any()
    mean = train.arrays["boxes"][label == other, 0].mean(0) / config.size
    np.testing.assert_allclose(box[given != face], np.tile(mean, (sum(given != face), 1)), 1e-5)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, 1e-5)
    np.testing.assert_allclose(np.exp(logits.max(1)), 0.99, 1e-5)


def test_the_largest_of_several_faces_answers():
    class Cascade:
        def detectMultiScale(self, photo, **_):
            return np.array([[1, 2, 4, 4], [10, 20, 30, 30], [5, 5, 6, 6]])

    box = baselines._largest_face(Cascade(), np.zeros((50, 100), np.uint8))
    np.testing.assert_allclose(box, [0.1, 0.4, 0.4, 1.0])


@pytest.mark.parametrize("kind", ["mse", "ciou"])
def test_answers_are_judged_as_those_of_networks(system, kind):
    _, made = system
    classes, source = made.about["classes"], made.splits["val"]
    dice, count, side = np.random.default_rng(0), len(source), 80
    true = source.arrays["boxes"][:, 0]
    box = np.float32(true / side + dice.normal(0, 0.05, true.shape))
    logits = np.float32(dice.normal(size=(count, len(classes))))
    task = localize.Labeller(baselines.FixedOutputs(), classes, None, kind).task()
    found = baselines.evaluate_predictions(baselines.Predictions(logits, box), source, task, HYPER)

    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    missed = -np.log(chances[np.arange(count), source.arrays["label"]]).mean()
    apart = float(box_losses.box_loss(kind, box, true / side).mean())
    assert found["loss"] == pytest.approx(0.5 * missed + 2 * apart, rel=1e-5)
    rows = {
        "label": source.arrays["label"],
        "predicted": logits.argmax(1),
        "iou": np.array(1 - box_losses.box_loss("ciou", box, true / side)),
        "distance": np.linalg.norm(box - true / side, axis=1),
    }
    wanted = classification_metrics.localization_scores(rows, classes)
    for name in ("count", "correct", "accuracy", "confusion"):
        assert found[name] == wanted[name]
    assert found["distance"] == pytest.approx(wanted["distance"], rel=1e-5)


def test_without_faces_there_is_no_cascade(system):
    assert list(scores(system, classes=["mask", "tall", "wide"])) == [baselines.HOG]


def test_a_label_without_training_photos_is_never_given(system):
    _, made = system
    train = made.splits["train"]
    seen = train.take(np.flatnonzero(train.arrays["label"] != 1))
    logits, _ = baselines.fit_hog(seen, made.about["classes"]).answer(
        made.splits["val"].arrays["image"]
    )
    assert logits.shape == (len(made.splits["val"]), 3)
    assert np.isfinite(logits).all()
    assert not (logits.argmax(1) == 1).any()


def test_one_label_cannot_be_learnt(system):
    _, made = system
    train = made.splits["train"]
    one = train.take(np.flatnonzero(train.arrays["label"] == 1))
    with pytest.raises(InputError, match="at least two labels"):
        scores(system, splits={**made.splits, "train": one})


@pytest.mark.parametrize("module", [None, object()], ids=["none", "version 5"])
def test_what_is_missing_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "cv2", module)
    with pytest.raises(InputError, match=r"pip install jaxdet\[data\]"):
        baselines.require_opencv()
