import jax
import numpy as np
import pytest

from jaxdet.errors import InputError
from jaxdet.training import evaluator, parallel
from jaxdet.training import state as training_state
from tests import tiny


@pytest.fixture(scope="module")
def made():
    config, system = tiny.system(rows=21)
    return system, evaluator.eval_variables(jax.jit(training_state.init_fn(system, config))())


def scores(system, kept, batch, split="val"):
    return evaluator.Evaluator(system, split, batch, parallel.devices(1))(kept, 0)


def test_padding_and_batch_size_change_no_score(made):
    whole, parts = (scores(*made, batch) for batch in (21, 8))
    for name in whole:
        assert whole[name] == pytest.approx(parts[name], rel=1e-5), name


def test_the_same_inputs_at_every_evaluation(made):
    assert scores(*made, 8) == scores(*made, 8)


def test_a_sample_is_drawn_by_its_id_wherever_it_stands(made):
    system, _ = made
    turned = system._replace(splits={"val": system.splits["val"].take(np.arange(21)[::-1])})
    a, b = (evaluator.samples(s, "val", 21) for s in (system, turned))
    np.testing.assert_array_equal(a["image"], b["image"][::-1])
    np.testing.assert_array_equal(a["boxes"], b["boxes"][::-1])


def test_training_samples_differ_by_seed(made):
    a, b = (evaluator.samples(made[0], "train", 4, train=True, seed=s) for s in (0, 1))
    assert np.abs(a["image"] - b["image"]).max() > 0


def test_moving_averages_are_judged_where_they_are_kept():
    config, system = tiny.system(ema=0.9)
    state = jax.jit(training_state.init_fn(system, config))()
    moved = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    for a, b in zip(
        *map(jax.tree.leaves, (evaluator.eval_variables(moved), evaluator.eval_variables(state))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_batch_must_be_shared(made):
    with pytest.raises(InputError, match="--eval-batch 6"):
        evaluator.Evaluator(made[0], "val", 6, parallel.devices(4))
