"""Average precision by image weights equals COCO's; a weight of 2 counts an image twice."""

import numpy as np
import pytest

from jaxdet.metrics import average_precision as ap
from jaxdet.metrics import bootstrap, detection
from tests.metrics.test_detection import rows

CLASSES = ("a", "b", "c")


def scene(seed, images=12, slots=6, predictions=9):
    """Random objects, some crowds, and boxes near them, some of a wrong class."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        count = draw.integers(0, slots + 1)
        corners = draw.uniform(0, 70, (count, 2))
        true = np.concatenate([corners, corners + draw.uniform(8, 30, (count, 2))], 1)
        labels = draw.integers(0, len(CLASSES), count)
        near = (
            [true[i] + draw.normal(0, 2.5, 4) for i in draw.integers(0, count, 2 * count)]
            if count
            else []
        )
        near = near[:predictions]
        kinds = draw.integers(0, len(CLASSES), len(near))
        found.append((true, labels, near, kinds, np.round(draw.random(len(near)), 2)))
    measured = rows(found, slots, predictions)
    measured["true_crowd"] = measured["true_valid"] & (draw.random((images, slots)) < 0.2)
    return measured


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_coco(seed):
    measured = scene(seed)
    found = np.asarray(ap.average_precision(ap.match(measured, len(CLASSES)), np.ones(12)))
    expected = detection.scores(measured, CLASSES)
    assert abs(np.nanmean(found) - expected["map"]) < 1e-6
    assert abs(np.nanmean(found[0]) - expected["map50"]) < 1e-6
    assert abs(np.nanmean(found[5]) - expected["map75"]) < 1e-6
    for k, name in enumerate(CLASSES):
        assert abs(np.nanmean(found[:, k]) - expected["labels"][name]["map"]) < 1e-6


def test_a_class_without_objects_has_none():
    measured = scene(0)
    measured["true_valid"] &= measured["true_labels"] != 2
    found = np.asarray(ap.average_precision(ap.match(measured, len(CLASSES)), np.ones(12)))
    assert np.isnan(found[:, 2]).all() and np.isfinite(found[:, :2]).all()


def test_images_without_weight_do_not_count():
    measured = scene(1)
    kept = np.arange(12) % 3 > 0
    fewer = {name: column[kept] for name, column in measured.items()}
    whole = ap.average_precision(ap.match(measured, 3), kept.astype(np.float32))
    part = ap.average_precision(ap.match(fewer, 3), np.ones(kept.sum()))
    np.testing.assert_allclose(whole, part, atol=1e-6)


def test_equal_weights_have_no_effect():
    matches = ap.match(scene(2), 3)
    one, three = (np.asarray(ap.average_precision(matches, np.full(12, w))) for w in (1.0, 3.0))
    np.testing.assert_allclose(one, three, atol=1e-6)


def test_resamples_are_reproducible_and_surround_the_score():
    matches = ap.match(scene(1), 3)
    samples, again = (ap.bootstrap(matches, resamples=200) for _ in range(2))
    expected = detection.scores(scene(1), CLASSES)
    for name in ("map", "map50", "map75"):
        np.testing.assert_array_equal(samples[name], again[name])
        low, high = bootstrap.interval(samples[name])
        assert low < expected[name] < high


def test_a_resample_is_coco_s_score_of_the_drawn_images():
    measured = scene(2)
    draws = np.random.default_rng(5).multinomial(12, [1 / 12] * 12, 3)
    samples = ap.bootstrap(ap.match(measured, 3), resamples=3, seed=5)["map50"]
    for drawn, found in zip(draws, samples, strict=True):
        images = np.repeat(np.arange(12), drawn)
        repeated = {name: column[images] for name, column in measured.items()}
        assert abs(detection.scores(repeated, CLASSES)["map50"] - found) < 0.02  # ties differ
