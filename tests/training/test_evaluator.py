from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.training import evaluator
from jaxdet.training import state as training_state
from tests import tiny


@pytest.fixture(scope="module")
def experiment():
    return tiny.experiment(rows=21)


@pytest.fixture(scope="module")
def variables(experiment):
    return training_state.variables_of(jax.jit(training_state.init_fn(experiment))())


def scores(experiment, variables, batch):
    config = replace(experiment.config, eval_batch=batch)
    return evaluator.Evaluator(replace(experiment, config=config), "val")(variables, 0)


def test_scores_do_not_depend_on_padding_and_batch_size(experiment, variables):
    whole, parts = (scores(experiment, variables, batch) for batch in (21, 8))
    for name in whole:
        assert whole[name] == pytest.approx(parts[name], rel=1e-5), name


def test_every_evaluation_sees_the_same_inputs(experiment, variables):
    assert scores(experiment, variables, 8) == scores(experiment, variables, 8)


def test_random_inputs_depend_on_the_id_of_a_sample_and_not_on_its_position(experiment):
    source = experiment.splits["val"].take(np.arange(21)[::-1])
    reverse = replace(experiment, splits={"val": source})
    a, b = (evaluator.samples(e, "val", 21) for e in (experiment, reverse))
    np.testing.assert_array_equal(a["image"], b["image"][::-1])
    np.testing.assert_array_equal(a["boxes"], b["boxes"][::-1])


def test_training_samples_depend_on_the_seed(experiment):
    a, b = (evaluator.samples(experiment, "train", 4, train=True, seed=s) for s in (0, 1))
    assert np.abs(a["image"] - b["image"]).max() > 0


def test_moving_averages_are_evaluated_where_they_are_kept():
    state = jax.jit(training_state.init_fn(tiny.experiment(ema=0.9)))()
    changed = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    for a, b in zip(
        *(jax.tree.leaves(training_state.variables_of(s)) for s in (changed, state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_batch_must_be_a_multiple_of_the_devices(experiment):
    config = replace(experiment.config, eval_batch=6, devices=4)
    with pytest.raises(InputError, match="--eval-batch must be a positive multiple of 4.* got 6"):
        evaluator.Evaluator(replace(experiment, config=config), "val")
