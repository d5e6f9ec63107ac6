import numpy as np
import pytest

from jaxdet.metrics import label_errors
from tests.reference.label_errors import label_errors as reference


def random_rows(seed, images=3, predicted=9, true=7, classes=2):
    """Boxes on a coarse grid, so that many overlap and some are equal."""
    random = np.random.default_rng(seed)

    def boxes(count):
        low = random.integers(0, 5, (images, count, 2))
        return np.concatenate([low, low + random.integers(1, 6, low.shape)], -1) * np.float32(4)

    return {
        "boxes": boxes(predicted),
        "labels": random.integers(0, classes, (images, predicted)),
        "scores": random.uniform(0, 1, (images, predicted)).astype(np.float32),
        "valid": random.uniform(size=(images, predicted)) < 0.8,
        "true_boxes": boxes(true),
        "true_labels": random.integers(0, classes, (images, true)),
        "true_valid": random.uniform(size=(images, true)) < 0.8,
        "true_crowd": random.uniform(size=(images, true)) < 0.2,
    }


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_the_formulas_box_by_box(seed):
    rows = random_rows(seed)
    found = label_errors.find(rows)
    for i in range(len(rows["valid"])):
        expected = reference({name: column[i] for name, column in rows.items()})
        for kind, scores in expected.items():
            np.testing.assert_allclose(getattr(found, kind)[i], scores, atol=1e-6)


def perfect_rows():
    """Three objects per image, each found with a score of .9; predictions beyond are padding."""
    boxes = np.float32([[0, 0, 10, 10], [40, 0, 60, 20], [0, 40, 30, 60]])
    columns = {"boxes": boxes, "labels": np.array([0, 1, 1]), "scores": np.full(3, np.float32(0.9))}
    columns |= {"valid": np.ones(3, bool), "true_boxes": boxes, "true_labels": np.array([0, 1, 1])}
    columns |= {"true_valid": np.ones(3, bool), "true_crowd": np.zeros(3, bool)}
    return {name: np.stack([column] * 2) for name, column in columns.items()}


def test_labels_that_agree_with_predictions_have_no_errors():
    found = label_errors.find(perfect_rows())
    assert not any(getattr(found, kind).any() for kind in label_errors.KINDS)


def test_each_kind_of_error_is_found_where_it_is():
    rows = perfect_rows()
    rows["true_valid"][0, 0] = False
    rows["true_boxes"][0, 1] = [50, 0, 70, 20]  # IoU 1/3
    rows["true_labels"][1, 0] = 1
    rows["true_boxes"][1, 1], rows["true_labels"][1, 1] = [0, 40, 30, 58], 1
    found = label_errors.find(rows)
    np.testing.assert_allclose(found.missing, [[0.9, 0.6, 0], [0, 0.9, 0]], atol=1e-6)
    np.testing.assert_allclose(found.misplaced, [[0, 0.6 * 0.7, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(found.mislabeled, [[0, 0, 0], [0.9, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(found.duplicate, [[0, 0, 0], [0, 0.9, 0]], atol=1e-6)
    partner = found.partner
    assert partner["misplaced"][0, 1] == 1 and partner["mislabeled"][1, 0] == 0
    assert partner["duplicate"][1, 1] == 2


def test_images_without_predictions_or_objects_have_no_errors():
    rows = perfect_rows()
    rows["valid"][0] = False
    rows["true_valid"][1] = False
    found = label_errors.find(rows)
    np.testing.assert_allclose(found.missing, [[0] * 3, [0.9] * 3], atol=1e-6)
    assert not any(getattr(found, kind).any() for kind in label_errors.KINDS[1:])


def test_a_prediction_in_a_crowd_is_not_missing():
    rows = perfect_rows()
    rows["true_boxes"][0, 0], rows["true_crowd"][0, 0] = [0, 0, 60, 60], True
    rows["true_valid"][:, 1:] = False
    assert not label_errors.find(rows).missing[0].any()
