import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.errors import InputError
from jaxdet.metrics import verification as verification_metrics
from tests import slow_embeddings as slow

laws = settings(deadline=None, max_examples=25)
seeds = given(seed=st.integers(0, 2**32 - 1))
LEVELS = (0.0, 0.1, 0.25, 0.5, 1.0)
SCORES = {"auc": verification_metrics.auc, "eer": verification_metrics.eer}


def drawn(seed, count=20):
    """Scores with ties, and pairs of both kinds."""
    rng = np.random.default_rng(seed)
    same = rng.permutation(np.arange(count) % 3 > 0)
    return (rng.integers(0, 9, count) + 3 * same) / 9, same


@laws
@seeds
def test_the_curve_is_the_loop_at_each_of_its_thresholds(seed):
    scores, same = drawn(seed)
    far, tar, thresholds = verification_metrics.roc(scores, same)
    expected = [slow.shares(scores, same, t) for t in thresholds]
    np.testing.assert_allclose(np.stack([far, tar], 1), expected)
    assert set(thresholds) == {*scores, np.inf}
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)


@laws
@seeds
def test_area_and_tar_at_far_are_the_loops(seed):
    scores, same = drawn(seed)
    assert verification_metrics.auc(scores, same) == pytest.approx(slow.auc(scores, same))
    expected = [slow.tar_at_far(scores, same, far) for far in LEVELS]
    np.testing.assert_allclose(verification_metrics.tar_at_far(scores, same, LEVELS), expected)


@laws
@seeds
def test_scores_depend_on_the_order_of_pairs_alone_and_swap_with_their_kinds(seed):
    scores, same = drawn(seed)
    order = np.random.default_rng(seed).permutation(len(scores))
    for score in SCORES.values():
        plain = score(scores, same)
        assert score(np.exp(3 * scores), same) == pytest.approx(plain)
        assert score(scores[order], same[order]) == pytest.approx(plain)
        assert score(-scores, ~same) == pytest.approx(plain)
    assert verification_metrics.auc(-scores, same) == pytest.approx(
        1 - verification_metrics.auc(scores, same)
    )


@pytest.mark.parametrize(
    "scores, same, eer, auc",
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0, 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 1.0, 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 0.5, 0.5),
        ([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0], 0.5, 0.75),
    ],
    ids=["apart", "reversed", "equal", "mixed"],
)
def test_error_rates_of_small_sets(scores, same, eer, auc):
    assert verification_metrics.eer(scores, same) == pytest.approx(eer)
    assert verification_metrics.auc(scores, same) == pytest.approx(auc)


def test_the_equal_error_rate_of_two_normal_distributions_is_the_tail_between_them():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 40_000), rng.normal(2, 1, 40_000)])
    found = verification_metrics.eer(scores, np.arange(80_000) >= 40_000)
    assert found == pytest.approx(0.158655, abs=0.004)  # of a normal distribution, below -1


@laws
@seeds
def test_identification_of_an_open_set_is_the_loop(seed):
    rng = np.random.default_rng(seed)
    scores, found, true = rng.integers(0, 9, 20) / 9, rng.integers(0, 2, 20), rng.integers(0, 3, 20)
    true = np.where(np.arange(20) < 6, -1, true)
    expected = [slow.dir_at_fpir(scores, found, true, level) for level in LEVELS]
    np.testing.assert_allclose(
        verification_metrics.dir_at_fpir(scores, found, true, LEVELS), expected
    )


@laws
@seeds
def test_accuracies_are_the_loop_and_the_best_threshold_beats_all_others(seed):
    scores, accept = drawn(seed)
    refuse = ~accept & (np.random.default_rng(seed).integers(0, 2, len(scores)) > 0)
    for no in (None, refuse):
        twin = partial(slow.accuracy, scores, accept, ~accept if no is None else no)
        grid = np.linspace(-0.5, 2, 61)
        found = verification_metrics.accuracy_at_thresholds(scores, accept, grid, refuse=no)
        np.testing.assert_allclose(found, [twin(t) for t in grid])
        threshold, accuracy = verification_metrics.best_threshold(scores, accept, refuse=no)
        assert accuracy == pytest.approx(twin(threshold)) and accuracy >= found.max() - 1e-12
        first, on_grid = verification_metrics.best_threshold(scores, accept, grid[::-1], refuse=no)
        assert on_grid == found.max() and first == grid[found.argmax()]


@pytest.mark.parametrize("accept, threshold", [(True, 0.25), (False, np.nextafter(1, 2))])
def test_of_one_kind_all_are_taken_or_none(accept, threshold):
    scores = np.array([0.25, 1, 0.5], np.float32)
    found, accuracy = verification_metrics.best_threshold(scores, [accept] * 3)
    assert accuracy == 1 and found == pytest.approx(threshold)
    assert ((scores >= np.float32(found)) == accept).all()


def test_each_fold_is_judged_at_the_best_threshold_of_the_others():
    scores, same = drawn(1, 47)
    found = verification_metrics.cross_validate(scores, same, 10)
    folds = [list(range(5 * i, 5 * i + 5)) for i in range(7)]
    folds += [list(range(35 + 4 * i, 39 + 4 * i)) for i in range(3)]
    for i, fold in enumerate(folds):
        rest = [n for n in range(47) if n not in fold]
        assert (
            found.thresholds[i] == verification_metrics.best_threshold(scores[rest], same[rest])[0]
        )
        accuracy = slow.accuracy(scores[fold], same[fold], ~same[fold], found.thresholds[i])
        assert found.accuracies[i] == pytest.approx(accuracy)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    spread = sum((a - found.mean) ** 2 for a in found.accuracies) / 9
    assert found.error == pytest.approx((spread / 10) ** 0.5)


def test_folds_may_be_given_pair_by_pair_and_are_consecutive_by_number():
    scores, same = drawn(1, 23)
    fold = verification_metrics.consecutive_folds(23, 4)
    assert fold.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 5
    for one, other in zip(
        verification_metrics.cross_validate(scores, same, 4),
        verification_metrics.cross_validate(scores[::-1], same[::-1], 7 * fold[::-1]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="all 23 pairs are of one fold"):
        verification_metrics.cross_validate(scores, same, np.zeros(23))


def test_folds_of_pairs_that_one_threshold_tells_apart_are_all_right():
    same = np.arange(40) % 2 == 0
    found = verification_metrics.cross_validate(
        same + np.linspace(0, 0.4, 40), same, thresholds=[0.2, 0.7]
    )
    assert (found.mean, found.error) == (1, 0) and (found.thresholds == 0.7).all()


@pytest.mark.parametrize(
    "score", [*SCORES.values(), verification_metrics.roc, verification_metrics.tar_at_far]
)
def test_pairs_of_one_kind_are_refused(score):
    with pytest.raises(InputError, match="all 2 pairs are of one person"):
        score([0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match="all 2 pairs are of two"):
        score([0.1, 0.2], [0, 0])


@pytest.mark.parametrize(
    "score",
    [*SCORES.values(), verification_metrics.best_threshold, verification_metrics.cross_validate],
)
def test_no_pairs_odd_numbers_and_odd_shapes_are_refused(score):
    with pytest.raises(InputError, match="no pairs"):
        score([], [])
    with pytest.raises(InputError, match="score 1 is not finite"):
        score([0.1, np.nan], [0, 1])
    with pytest.raises(InputError, match="want one each"):
        score([0.1, 0.2], [0, 1, 1])


def test_too_few_pairs_probes_of_one_kind_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(InputError, match="2 pairs cannot make 10 folds"):
        verification_metrics.cross_validate([0.1, 0.2], [0, 1])
    with pytest.raises(InputError, match="of 2 probes 2 are of known people"):
        verification_metrics.dir_at_fpir([0.1, 0.2], [0, 1], [0, 1])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        verification_metrics.auc([0.1, 0.2], [0, 1])


def test_a_plane_tells_apart_what_one_can_and_not_the_corners_of_a_square():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    apart = np.array([[0, 0], [4, 0], [0, 4]])[labels] + rng.normal(0, 0.3, (60, 2))
    np.testing.assert_array_equal(
        verification_metrics.linear_probe(apart[:30], labels[:30], apart), labels
    )
    corners = np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 15) + rng.normal(0, 0.05, (60, 2))
    crossed = np.array([0, 0, 1, 1] * 15)
    found = verification_metrics.linear_probe(corners[:40], crossed[:40], corners[40:])
    assert (found == crossed[40:]).mean() <= 0.75
