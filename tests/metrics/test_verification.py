import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.errors import InputError
from jaxdet.metrics import verification as verification_metrics
from tests.reference import verification as reference

laws = settings(deadline=None, max_examples=25)
seeds = given(seed=st.integers(0, 2**32 - 1))
RATES = (0.0, 0.1, 0.25, 0.5, 1.0)
SCORES = {"auc": verification_metrics.auc, "eer": verification_metrics.eer}


def random_pairs(seed, count=20):
    """Scores with ties of pairs of both kinds, and which are of the same identity."""
    rng = np.random.default_rng(seed)
    same = rng.permutation(np.arange(count) % 3 > 0)
    return (rng.integers(0, 9, count) + 3 * same) / 9, same


@laws
@seeds
def test_roc_matches_the_reference_at_each_threshold(seed):
    scores, same = random_pairs(seed)
    far, tar, thresholds = verification_metrics.roc(scores, same)
    expected = [reference.far_and_tar(scores, same, t) for t in thresholds]
    np.testing.assert_allclose(np.stack([far, tar], 1), expected)
    assert set(thresholds) == {*scores, np.inf}
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)


@laws
@seeds
def test_auc_and_tar_at_far_match_the_reference(seed):
    scores, same = random_pairs(seed)
    assert verification_metrics.auc(scores, same) == pytest.approx(reference.auc(scores, same))
    expected = [reference.tar_at_far(scores, same, far) for far in RATES]
    np.testing.assert_allclose(verification_metrics.tar_at_far(scores, same, RATES), expected)


@laws
@seeds
def test_rates_depend_on_ranks_only_and_are_symmetric_in_the_kinds(seed):
    scores, same = random_pairs(seed)
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
    ids=["separable", "reversed", "equal", "mixed"],
)
def test_auc_and_eer_of_small_examples(scores, same, eer, auc):
    assert verification_metrics.eer(scores, same) == pytest.approx(eer)
    assert verification_metrics.auc(scores, same) == pytest.approx(auc)


def test_eer_of_two_normal_distributions_is_their_common_tail():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 40_000), rng.normal(2, 1, 40_000)])
    found = verification_metrics.eer(scores, np.arange(80_000) >= 40_000)
    assert found == pytest.approx(0.158655, abs=0.004)  # of a normal distribution below -1


@laws
@seeds
def test_dir_at_fpir_matches_the_reference(seed):
    rng = np.random.default_rng(seed)
    scores, found, true = rng.integers(0, 9, 20) / 9, rng.integers(0, 2, 20), rng.integers(0, 3, 20)
    true = np.where(np.arange(20) < 6, -1, true)
    expected = [reference.dir_at_fpir(scores, found, true, level) for level in RATES]
    np.testing.assert_allclose(
        verification_metrics.dir_at_fpir(scores, found, true, RATES), expected
    )


@laws
@seeds
def test_accuracies_match_the_reference_and_the_best_threshold_is_best(seed):
    scores, accept = random_pairs(seed)
    reject = ~accept & (np.random.default_rng(seed).integers(0, 2, len(scores)) > 0)
    for no in (None, reject):
        expected = partial(reference.accuracy, scores, accept, ~accept if no is None else no)
        grid = np.linspace(-0.5, 2, 61)
        found = verification_metrics.accuracy_at_thresholds(scores, accept, grid, reject=no)
        np.testing.assert_allclose(found, [expected(t) for t in grid])
        threshold, accuracy = verification_metrics.best_threshold(scores, accept, reject=no)
        assert accuracy == pytest.approx(expected(threshold)) and accuracy >= found.max() - 1e-12
        first, on_grid = verification_metrics.best_threshold(scores, accept, grid[::-1], reject=no)
        assert on_grid == found.max() and first == grid[found.argmax()]


@pytest.mark.parametrize("accept, threshold", [(True, 0.25), (False, np.nextafter(1, 2))])
def test_best_threshold_of_one_kind_accepts_all_or_none(accept, threshold):
    scores = np.array([0.25, 1, 0.5], np.float32)
    found, accuracy = verification_metrics.best_threshold(scores, [accept] * 3)
    assert accuracy == 1 and found == pytest.approx(threshold)
    assert ((scores >= np.float32(found)) == accept).all()


def test_each_fold_is_evaluated_at_the_best_threshold_of_the_others():
    scores, same = random_pairs(1, 47)
    found = verification_metrics.cross_validate(scores, same, 10)
    folds = [list(range(5 * i, 5 * i + 5)) for i in range(7)]
    folds += [list(range(35 + 4 * i, 39 + 4 * i)) for i in range(3)]
    for i, fold in enumerate(folds):
        rest = [n for n in range(47) if n not in fold]
        assert (
            found.thresholds[i] == verification_metrics.best_threshold(scores[rest], same[rest])[0]
        )
        accuracy = reference.accuracy(scores[fold], same[fold], ~same[fold], found.thresholds[i])
        assert found.accuracies[i] == pytest.approx(accuracy)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    spread = sum((a - found.mean) ** 2 for a in found.accuracies) / 9
    assert found.error == pytest.approx((spread / 10) ** 0.5)


def test_folds_are_consecutive_or_given_for_each_pair():
    scores, same = random_pairs(1, 23)
    fold = verification_metrics.consecutive_folds(23, 4)
    assert fold.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 5
    for one, other in zip(
        verification_metrics.cross_validate(scores, same, 4),
        verification_metrics.cross_validate(scores[::-1], same[::-1], 7 * fold[::-1]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="all 23 pairs are in one fold"):
        verification_metrics.cross_validate(scores, same, np.zeros(23))


def test_separable_pairs_have_accuracy_one_in_every_fold():
    same = np.arange(40) % 2 == 0
    found = verification_metrics.cross_validate(
        same + np.linspace(0, 0.4, 40), same, thresholds=[0.2, 0.7]
    )
    assert (found.mean, found.error) == (1, 0) and (found.thresholds == 0.7).all()


@pytest.mark.parametrize(
    "score", [*SCORES.values(), verification_metrics.roc, verification_metrics.tar_at_far]
)
def test_pairs_of_one_kind_are_rejected(score):
    with pytest.raises(
        InputError, match="all 2 pairs are of the same identity; pairs of both kinds"
    ):
        score([0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match="all 2 pairs are of different identities"):
        score([0.1, 0.2], [0, 0])


@pytest.mark.parametrize(
    "score",
    [*SCORES.values(), verification_metrics.best_threshold, verification_metrics.cross_validate],
)
def test_empty_infinite_and_misshapen_input_is_rejected(score):
    with pytest.raises(InputError, match="no pairs"):
        score([], [])
    with pytest.raises(InputError, match="scores must be finite, got (nan|inf) at index 1"):
        score([0.1, np.nan], [0, 1])
    with pytest.raises(
        InputError, match=r"one value per pair, got shape \(2,\) for pairs of shape \(3,\)"
    ):
        score([0.1, 0.2], [0, 1, 1])


def test_too_few_pairs_probes_of_one_kind_and_missing_packages_are_rejected(monkeypatch):
    with pytest.raises(InputError, match="folds must be from 2 to 2, the number of pairs, got 10"):
        verification_metrics.cross_validate([0.1, 0.2], [0, 1])
    with pytest.raises(InputError, match="2 of 2 probes have an identity in the gallery"):
        verification_metrics.dir_at_fpir([0.1, 0.2], [0, 1], [0, 1])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        verification_metrics.auc([0.1, 0.2], [0, 1])


def test_linear_probe_separates_clusters_but_not_xor():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    clusters = np.array([[0, 0], [4, 0], [0, 4]])[labels] + rng.normal(0, 0.3, (60, 2))
    np.testing.assert_array_equal(
        verification_metrics.linear_probe(clusters[:30], labels[:30], clusters), labels
    )
    corners = np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 15) + rng.normal(0, 0.05, (60, 2))
    xor = np.array([0, 0, 1, 1] * 15)
    found = verification_metrics.linear_probe(corners[:40], xor[:40], corners[40:])
    assert (found == xor[40:]).mean() <= 0.75


@pytest.mark.parametrize("flag", [np.nan, 2, -1])
def test_pairs_are_marked_by_zero_or_one(flag):
    for function in (
        verification_metrics.auc,
        verification_metrics.eer,
        verification_metrics.best_threshold,
    ):
        with pytest.raises(InputError, match=f"must be 0 or 1, got {flag}"):
            function([0.1, 0.9, 0.5], [0, 1, flag])
        with pytest.raises(InputError, match="no pairs"):
            function([], [])
    with pytest.raises(InputError, match="all 2 pairs are of the same identity"):
        verification_metrics.auc([0.1, 0.9], [1, 1])
    assert verification_metrics.auc([0.1, 0.9], [0.0, 1.0]) == 1
