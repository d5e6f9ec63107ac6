from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.losses import boxes as box_losses
from jaxdet.ops import boxes
from tests import slow

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "detection_ops.npz")
LOSSES = {
    "iou": box_losses.iou,
    "giou": box_losses.giou,
    "diou": box_losses.diou,
    "ciou": box_losses.ciou,
}
COMPILED = {name: jax.jit(loss) for name, loss in LOSSES.items()}
PAIRS = [GOLDENS[f"iou_{k}"].astype(np.float32) for k in "ab"]
each_loss = pytest.mark.parametrize("name", LOSSES)


def gen_bbox(rng, num_boxes):
    """Integer boxes [num_boxes, 4] as the seed draws them, corners put in order; some are empty."""
    corners = rng.integers([[0], [50]], [[100], [150]], (num_boxes, 2, 2))
    return np.sort(corners, axis=2).transpose(0, 2, 1).reshape(num_boxes, 4)


@partial(jax.jit, static_argnums=0)
def derived(name, predicted, true, weights):
    """Losses, and the gradient by the predicted boxes of their sum, so weighted."""
    loss, back = jax.vjp(lambda boxes: LOSSES[name](boxes, true), predicted)
    return loss, *back(weights)


@each_loss
def test_loss_and_gradient_are_the_golden_ones(name):
    loss, gradient = derived(name, *PAIRS, np.ones(len(PAIRS[0]), np.float32))
    np.testing.assert_allclose(loss, GOLDENS[f"iou_{name}_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, GOLDENS[f"iou_{name}_grad"], rtol=1e-5, atol=1e-6)


def test_seed_002_diou_of_1000_generated_pairs_is_distance_box_iou_loss():
    rng = np.random.default_rng(2)
    predicted, true = gen_bbox(rng, 1000), gen_bbox(rng, 1000)
    loss, expected = COMPILED["diou"](predicted, true), slow.distance_box_iou_loss(predicted, true)
    assert np.isclose(loss.mean(), expected.mean())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_losses_of_generated_pairs_are_the_loops(seed):
    rng = np.random.default_rng(seed)
    predicted, true = gen_bbox(rng, 8), gen_bbox(rng, 8)
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    for name, loss in COMPILED.items():
        expected = [1 - getattr(slow, name)(*pair, eps=1e-7) for pair in pairs]
        np.testing.assert_allclose(loss(predicted, true), expected, rtol=1e-5, atol=1e-6)


@each_loss
def test_loss_is_one_minus_the_overlap_of_any_shape(name):
    predicted, true = (GOLDENS[f"iou_{k}"][:15].reshape(3, 5, 4) for k in "ab")
    loss = LOSSES[name](predicted, true)
    chex.assert_shape(loss, (3, 5))
    overlap = getattr(boxes, name)(predicted, true)
    chex.assert_trees_all_close(loss, 1 - overlap, atol=1e-6)
    swept = jax.jit(jax.vmap(LOSSES[name]))(predicted, true)
    compiled = COMPILED[name](predicted, true)
    chex.assert_trees_all_close(loss, compiled, swept, rtol=1e-5, atol=1e-6)
    every = jax.eval_shape(LOSSES[name], predicted[:, None], true[None])
    chex.assert_shape(every, (3, 3, 5))


@each_loss
def test_loss_of_boxes_in_bfloat16_is_float32(name):
    predicted, true = (GOLDENS[f"iou_{k}"].astype(jnp.bfloat16) for k in "ab")
    wide = COMPILED[name](predicted.astype(np.float32), true.astype(np.float32))
    chex.assert_trees_all_equal(COMPILED[name](predicted, true), wide)


def test_alpha_of_ciou_passes_no_gradient():
    predicted, true = np.float32([0, 0, 4, 2]), np.float32([1, 0, 4, 5])

    def v(box):
        angles = [jnp.arctan((b[2] - b[0]) / (b[3] - b[1])) for b in (box, true)]
        return 4 / jnp.pi**2 * (angles[0] - angles[1]) ** 2

    @jax.jit
    def both(predicted):
        alpha = v(predicted) / (box_losses.iou(predicted, true) + v(predicted))
        penalty = jax.grad(box_losses.ciou)(predicted, true) - jax.grad(box_losses.diou)(
            predicted, true
        )
        return penalty, alpha * jax.grad(v)(predicted)

    chex.assert_trees_all_close(*both(predicted), rtol=1e-4)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_descent_brings_a_box_onto_a_true_one_that_it_does_not_touch(name):
    true = jnp.array([30.0, 30, 60, 50])
    pull = jax.grad(LOSSES[name])
    box = jax.lax.fori_loop(
        0,
        2000,
        lambda step, box: box - 100 * 0.998**step * pull(box, true),
        jnp.array([0.0, 0, 10, 10]),
    )
    assert boxes.iou(box, true) > 0.95


@each_loss
def test_masked_mean_of_padding_is_finite_and_still(name):
    predicted, true = np.zeros_like(PAIRS)
    predicted[0], true[0] = [0, 0, 4, 4], [1, 1, 5, 5]
    on = (np.arange(len(true)) < 1).astype(np.float32)
    loss, gradient = jax.device_get(derived(name, predicted, true, on))
    none = np.zeros_like(on)
    assert (loss * none).sum() == 0  # NaN is not
    assert not derived(name, predicted, true, none)[1].any()
    assert np.isfinite(gradient).all() and gradient[0].any() and not gradient[1:].any()
