import json

import numpy as np
import pytest

from jaxdet.metrics import classification as classification_metrics


def labels(count, known=3):
    """Random true labels, of the first `known` of three classes, and random predicted ones."""
    random = np.random.default_rng(count)
    return {
        "label": random.integers(known, size=count),
        "predicted": random.integers(3, size=count),
    }


@pytest.mark.parametrize("count, known", [(40, 3), (1, 1), (12, 2)])
def test_scores_match_the_reference(count, known):
    rows = labels(count, known)
    pairs = list(zip(*rows.values(), strict=True))
    found = classification_metrics.scores(rows, ("a", "b", "c"))
    assert found["correct"] == sum(true == predicted for true, predicted in pairs)
    assert found["accuracy"] == pytest.approx(found["correct"] / count)
    for i, (name, of_label) in enumerate(found["labels"].items()):
        own = [predicted for true, predicted in pairs if true == i]
        assert (name, of_label["count"], of_label["correct"]) == ("abc"[i], len(own), own.count(i))
        assert of_label.get("accuracy") == (pytest.approx(own.count(i) / len(own)) if own else None)
        assert found["confusion"][i] == [own.count(j) for j in range(3)]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "scores, start",
    [
        ([0.1, 0.3, 0.5, 0.5, 0.501, 0.5], 2),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ([0.5, 0.5, 0.5], None),  # fewer than three after each
        ([0.5, 0.5, 0.5, 0.5], 0),
        ([0.5, 0.4, 0.3, 0.6, 0.1, 0.1, 0.1], 3),
        ([0.1, 0.5, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6], 5),  # an early peak, better later
        ([], None),
    ],
)
def test_plateau_starts_where_the_next_scores_hardly_rise(scores, start):
    assert classification_metrics.plateau_start(scores, rise=0.002, over=3) == start


def test_localization_scores_include_the_scores_of_labels():
    rows, boxes = labels(30), {"iou": np.zeros(30, np.float32), "distance": np.zeros(30)}
    alone, both = (
        classification_metrics.scores(rows, "abc"),
        classification_metrics.localization_scores(rows | boxes, "abc"),
    )
    assert both["confusion"] == alone["confusion"]
    assert {name: both[name] for name in ("count", "correct", "accuracy")} == {
        name: alone[name] for name in ("count", "correct", "accuracy")
    }
