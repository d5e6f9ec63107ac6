import sys

import numpy as np
import pytest

from jaxdet import baselines, configs
from jaxdet.configs.objects import Config
from jaxdet.errors import InputError
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import classification as classification_metrics
from jaxdet.tasks import localize
from tests.cli.test_compare import write_shapes

cv2 = pytest.importorskip("cv2")
if not hasattr(cv2, "CascadeClassifier"):
    pytest.skip("OpenCV 5 has no cascades", allow_module_level=True)

HPARAMS = {"class_weight": 0.5, "box_weight": 2.0, "dropout_scale": 1.0}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The generated images as an experiment of `objects`."""
    root = write_shapes(tmp_path_factory.mktemp("baselines") / "data", 60)
    config = Config(root=str(root), size=80, val_fraction=0.2, test_fraction=0.3)
    return configs.build("objects", config)


def scores(experiment, **changes):
    """{baseline: scores on the test split}."""
    arguments = {
        "splits": experiment.splits,
        "split": "test",
        "classes": experiment.metadata["classes"],
        "root": experiment.config.root,
        "box_loss": "ciou",
        "hparams": HPARAMS,
    }
    return baselines.evaluate(**arguments | changes)


def test_easy_images_are_classified_and_located(experiment):
    found = scores(experiment)
    assert list(found) == [baselines.HOG, baselines.HAAR]
    hog, haar = found.values()
    assert hog["accuracy"] > 0.9
    assert hog["iou"] > 0.6
    assert hog["loss"] < 0.5 * np.log(3) + 2 * 0.4  # chance, with boxes close to the true ones
    assert haar["labels"]["face"]["accuracy"] > 0.8
    assert haar["labels"]["face"]["iou"] > 0.6
    assert all(of["seconds"] > 0 for of in found.values())


def test_images_without_a_face_get_the_most_frequent_other_label_and_its_mean_box(experiment):
    train, test = experiment.splits["train"], experiment.splits["test"]
    cascade = baselines.fit_haar(train, experiment.metadata["classes"], experiment.config.root)
    logits, box = cascade.predict(cascade.inputs(test))
    label = train.arrays["label"]
    other = max((1, 2), key=lambda i: (label == i).sum())
    given, face = logits.argmax(1), 0
    assert set(given) == {face, other}
    assert not (given[test.arrays["label"] != face] == face).any()
    mean = train.arrays["boxes"][label == other, 0].mean(0) / experiment.config.size
    np.testing.assert_allclose(box[given != face], np.tile(mean, (sum(given != face), 1)), 1e-5)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, 1e-5)
    np.testing.assert_allclose(np.exp(logits.max(1)), 0.99, 1e-5)


def test_the_largest_of_several_faces_is_predicted():
    class Cascade:
        def detectMultiScale(self, image, **_):
            return np.array([[1, 2, 4, 4], [10, 20, 30, 30], [5, 5, 6, 6]])

    box = baselines._largest_face(Cascade(), np.zeros((50, 100), np.uint8))
    np.testing.assert_allclose(box, [0.1, 0.4, 0.4, 1.0])


@pytest.mark.parametrize("kind", ["mse", "ciou"])
def test_predictions_are_evaluated_as_those_of_networks(experiment, kind):
    classes, source = experiment.metadata["classes"], experiment.splits["val"]
    rng, count, side = np.random.default_rng(0), len(source), 80
    true = source.arrays["boxes"][:, 0]
    box = np.float32(true / side + rng.normal(0, 0.05, true.shape))
    logits = np.float32(rng.normal(size=(count, len(classes))))
    task = localize.LocalizationTask(baselines.FixedOutputs(), classes, None, kind)
    found = baselines.evaluate_predictions(
        baselines.Predictions(logits, box), source, task, HPARAMS
    )

    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cross_entropy = -np.log(probabilities[np.arange(count), source.arrays["label"]]).mean()
    box_loss = float(box_losses.box_loss(kind, box, true / side).mean())
    assert found["loss"] == pytest.approx(0.5 * cross_entropy + 2 * box_loss, rel=1e-5)
    rows = {
        "label": source.arrays["label"],
        "predicted": logits.argmax(1),
        "iou": np.array(1 - box_losses.box_loss("ciou", box, true / side)),
        "distance": np.linalg.norm(box - true / side, axis=1),
    }
    expected = classification_metrics.localization_scores(rows, classes)
    for name in ("count", "correct", "accuracy", "confusion"):
        assert found[name] == expected[name]
    assert found["distance"] == pytest.approx(expected["distance"], rel=1e-5)


def test_without_the_class_face_there_is_no_cascade(experiment):
    assert list(scores(experiment, classes=["mask", "tall", "wide"])) == [baselines.HOG]


def test_labels_without_training_images_are_never_predicted(experiment):
    train = experiment.splits["train"]
    seen = train.take(np.flatnonzero(train.arrays["label"] != 1))
    logits, _ = baselines.fit_hog(seen, experiment.metadata["classes"]).predict(
        experiment.splits["val"].arrays["image"]
    )
    assert logits.shape == (len(experiment.splits["val"]), 3)
    assert np.isfinite(logits).all()
    assert not (logits.argmax(1) == 1).any()


def test_training_images_of_one_label_are_rejected(experiment):
    train = experiment.splits["train"]
    one = train.take(np.flatnonzero(train.arrays["label"] == 1))
    with pytest.raises(InputError, match="at least two labels"):
        scores(experiment, splits={**experiment.splits, "train": one})


@pytest.mark.parametrize("module", [None, object()], ids=["none", "version 5"])
def test_missing_opencv_is_reported(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "cv2", module)
    with pytest.raises(InputError, match=r"pip install jaxdet\[data\]"):
        baselines.require_opencv()
