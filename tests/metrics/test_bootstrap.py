"""Percentile intervals of resampled scores."""

import numpy as np
import pytest

from jaxdet.metrics import bootstrap


def mean(rows):
    return {"mean": float(rows["x"].mean()), "count": len(rows["x"])}


def test_resamples_have_the_spread_of_the_mean_and_rows_stay_together():
    x = np.random.default_rng(0).normal(size=400)
    rows = {"x": x, "double": 2 * x}

    def report(drawn):
        np.testing.assert_array_equal(2 * drawn["x"], drawn["double"])
        return mean(drawn)

    samples = bootstrap.resample(report, rows, resamples=2000, seed=1)
    assert {*samples} == {"mean"} and samples["mean"].shape == (2000,)
    np.testing.assert_allclose(samples["mean"].std(), x.std() / np.sqrt(400), rtol=0.05)
    again = bootstrap.resample(report, rows, resamples=2000, seed=1)
    np.testing.assert_array_equal(samples["mean"], again["mean"])


@pytest.mark.long
def test_intervals_hold_the_true_mean_in_95_of_100_cases():
    """600 sets of 80 images with a true accuracy of .7; the standard error of the rate is .9%."""
    draw, held = np.random.default_rng(0), 0
    for trial in range(600):
        rows = {"x": (draw.random(80) < 0.7).astype(float)}
        low, high = bootstrap.interval(
            bootstrap.resample(mean, rows, resamples=300, seed=trial)["mean"]
        )
        held += low <= 0.7 <= high
    assert abs(held / 600 - 0.95) <= 0.02


def test_an_interval_leaves_out_unknown_samples():
    found = bootstrap.interval(np.array([np.nan, *range(101)]), 0.9)
    np.testing.assert_allclose(found, (5, 95))
    assert np.isnan(bootstrap.interval(np.array([np.nan]))).all()


def test_a_score_that_a_resample_lacks_is_unknown():
    def report(rows):
        return {"first": 1.0} if 0 in rows["x"] else {"second": 2.0}

    samples = bootstrap.resample(report, {"x": np.arange(2)}, resamples=50)
    assert np.isnan(samples["first"]).any() and np.isnan(samples["second"]).any()
