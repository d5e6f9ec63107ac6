"""Calibration errors and temperatures of scores whose calibration is known."""

import numpy as np
import pytest

from jaxdet.metrics import calibration


def drawn(temperature, count=60_000):
    """Scores, and whether each is correct, with a probability of its score at the temperature."""
    draw = np.random.default_rng(0)
    scores = draw.uniform(0.02, 0.98, count)
    return scores, draw.random(count) < calibration.apply_temperature(scores, temperature)


def test_calibrated_scores_have_no_error():
    scores, correct = drawn(1.0)
    assert calibration.expected_calibration_error(scores, correct) < 0.01
    found = calibration.reliability(scores, correct)
    np.testing.assert_allclose(found.score, found.accuracy, atol=0.03)
    assert found.count.sum() == len(scores)


def test_the_error_is_the_mean_distance_by_an_obvious_loop():
    draw = np.random.default_rng(1)
    scores, correct = draw.random(200), draw.random(200) < 0.3
    scores[:2] = 0, 1  # both ends belong to a bin
    total = 0.0
    for b in range(10):
        low, high = b / 10, (b + 1) / 10
        own = (scores >= low) & ((scores < high) | (b == 9))
        if own.any():
            total += own.sum() * abs(scores[own].mean() - correct[own].mean())
    found = calibration.expected_calibration_error(scores, correct, 10)
    np.testing.assert_allclose(found, total / 200)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_is_recovered_and_removes_the_error(temperature):
    scores, correct = drawn(temperature)
    found = calibration.fit_temperature(scores, correct)
    np.testing.assert_allclose(found, temperature, rtol=0.05)
    before, after = (
        calibration.expected_calibration_error(each, correct)
        for each in (scores, calibration.apply_temperature(scores, found))
    )
    assert after < 0.01 < 0.05 < before


def test_a_temperature_of_1_has_no_effect_and_the_order_stays():
    scores = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(calibration.apply_temperature(scores, 1.0), scores)
    assert (np.diff(calibration.apply_temperature(scores, 3.0)) > 0).all()


def test_no_scores_and_certain_ones_have_a_value():
    none = np.zeros(0)
    assert np.isnan(calibration.expected_calibration_error(none, none))
    assert calibration.fit_temperature(none, none) == 1
    certain = np.array([0.0, 1.0])
    assert np.isfinite(calibration.fit_temperature(certain, certain > 0.5))
    assert calibration.expected_calibration_error(certain, certain > 0.5) == 0
