"""Operating points equal what an obvious search over all thresholds finds."""

import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.metrics import average_precision, operating_point
from jaxdet.metrics.detection import confusion_matrix
from tests.metrics.test_average_precision import CLASSES, scene
from tests.metrics.test_detection import BOX, OTHER, rows

K = len(CLASSES)


def candidates(matches, k):
    scores = matches.score[k]
    return np.unique(scores[np.isfinite(scores)])


def at(matches, k, threshold):
    thresholds = np.full(K, np.nan)
    thresholds[k] = threshold
    return {name: values[k] for name, values in operating_point.rates(matches, thresholds).items()}


@pytest.mark.parametrize("seed", range(3))
def test_rules_choose_as_a_search_over_all_thresholds(seed):
    matches = average_precision.match(scene(seed), K)
    f1, recall, precision = (
        operating_point.choose(matches, rule) for rule in ("f1", "recall=.3", "precision=.25")
    )
    for k in range(K):
        found = {t: at(matches, k, t) for t in candidates(matches, k)}
        assert at(matches, k, f1[k])["f1"] == max(rates["f1"] for rates in found.values())
        reached = [t for t, rates in found.items() if rates["recall"] >= 0.3]
        np.testing.assert_equal(recall[k], max(reached, default=np.nan))
        reached = [t for t, rates in found.items() if rates["precision"] >= 0.25]
        np.testing.assert_equal(precision[k], min(reached, default=np.nan))


def test_rates_count_right_and_wrong_boxes():
    measured = rows(
        [
            ([BOX, OTHER], [0, 0], [BOX, (0, 60, 9, 90)], [0, 0], [0.9, 0.6]),
            ([BOX], [1], [BOX, OTHER], [1, 1], [0.3, 0.8]),
        ]
    )
    matches = average_precision.match(measured, K)
    found = operating_point.rates(matches, np.full(K, 0.5))
    np.testing.assert_array_equal(found["precision"], [0.5, 0, np.nan])
    np.testing.assert_array_equal(found["recall"], [0.5, 0, np.nan])
    np.testing.assert_array_equal(found["f1"], [0.5, 0, np.nan])
    images = operating_point.per_image(matches, np.full(K, 0.5))
    assert {name: list(counts) for name, counts in images.items()} == {
        "tp": [1, 0],
        "fp": [1, 1],
        "fn": [1, 1],
    }


@pytest.mark.parametrize("seed", range(3))
def test_counts_agree_with_each_other(seed):
    measured = scene(seed)
    measured["true_crowd"][:] = False
    matches = average_precision.match(measured, K)
    thresholds = np.full(K, 0.25)
    images = operating_point.per_image(matches, thresholds)
    found = operating_point.rates(matches, thresholds)
    right = found["recall"] * matches.objects.sum(0)
    assert images["tp"].sum() == round(right.sum())
    boxes = (measured["valid"] & (measured["scores"] >= 0.25)).sum()
    assert images["tp"].sum() + images["fp"].sum() == boxes
    assert images["tp"].sum() + images["fn"].sum() == measured["true_valid"].sum()
    assert confusion_matrix(measured, CLASSES)[:, :K].sum() == boxes


def test_the_boxes_of_all_classes_can_be_one_class():
    matches = average_precision.match(scene(1), K)
    one = operating_point.pooled(matches)
    thresholds = np.full(K, 0.4)
    whole = operating_point.per_image(matches, thresholds)
    for name, counts in operating_point.per_image(one, thresholds[:1]).items():
        np.testing.assert_array_equal(counts, whole[name])


def test_what_cannot_be_reached_is_unknown():
    measured = rows([([BOX, OTHER], [0, 0], [BOX], [0], [0.9])])
    matches = average_precision.match(measured, K)
    assert np.isnan(operating_point.choose(matches, "recall=.9")).all()
    np.testing.assert_allclose(
        operating_point.choose(matches, "precision=1"), [0.9, np.nan, np.nan], rtol=1e-6
    )


@pytest.mark.parametrize("rule", ["f2", "recall", "recall=2", "precision=-1", "f1=.5", ""])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(InputError, match="--choose-threshold must be f1, recall=R or precision=P"):
        operating_point.check_rule(rule)
