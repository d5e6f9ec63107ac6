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
from tests.reference import boxes as reference

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
    """Random integer boxes [num_boxes, 4]; some are empty."""
    corners = rng.integers([[0], [50]], [[100], [150]], (num_boxes, 2, 2))
    return np.sort(corners, axis=2).transpose(0, 2, 1).reshape(num_boxes, 4)


@partial(jax.jit, static_argnums=0)
def loss_and_gradient(name, predicted, true, weights):
    """Losses, and the gradient of their weighted sum with respect to the predicted boxes."""
    loss, back = jax.vjp(lambda boxes: LOSSES[name](boxes, true), predicted)
    return loss, *back(weights)


@each_loss
def test_losses_and_gradients_match_torchvision(name):
    loss, gradient = loss_and_gradient(name, *PAIRS, np.ones(len(PAIRS[0]), np.float32))
    np.testing.assert_allclose(loss, GOLDENS[f"iou_{name}_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, GOLDENS[f"iou_{name}_grad"], rtol=1e-5, atol=1e-6)


def test_diou_of_1000_random_pairs_matches_the_reference():
    rng = np.random.default_rng(2)
    predicted, true = gen_bbox(rng, 1000), gen_bbox(rng, 1000)
    loss, expected = (
        COMPILED["diou"](predicted, true),
        reference.distance_box_iou_loss(predicted, true),
    )
    assert np.isclose(loss.mean(), expected.mean())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_losses_match_the_scalar_reference(seed):
    rng = np.random.default_rng(seed)
    predicted, true = gen_bbox(rng, 8), gen_bbox(rng, 8)
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    for name, loss in COMPILED.items():
        expected = [1 - getattr(reference, name)(*pair, eps=1e-7) for pair in pairs]
        np.testing.assert_allclose(loss(predicted, true), expected, rtol=1e-5, atol=1e-6)


@each_loss
def test_losses_are_one_minus_the_overlap_for_any_batch_shape(name):
    predicted, true = (GOLDENS[f"iou_{k}"][:15].reshape(3, 5, 4) for k in "ab")
    loss = LOSSES[name](predicted, true)
    chex.assert_shape(loss, (3, 5))
    overlap = getattr(boxes, name)(predicted, true)
    chex.assert_trees_all_close(loss, 1 - overlap, atol=1e-6)
    mapped = jax.jit(jax.vmap(LOSSES[name]))(predicted, true)
    compiled = COMPILED[name](predicted, true)
    chex.assert_trees_all_close(loss, compiled, mapped, rtol=1e-5, atol=1e-6)
    pairwise = jax.eval_shape(LOSSES[name], predicted[:, None], true[None])
    chex.assert_shape(pairwise, (3, 3, 5))


@each_loss
def test_bfloat16_boxes_are_computed_in_float32(name):
    predicted, true = (GOLDENS[f"iou_{k}"].astype(jnp.bfloat16) for k in "ab")
    expected = COMPILED[name](predicted.astype(np.float32), true.astype(np.float32))
    chex.assert_trees_all_equal(COMPILED[name](predicted, true), expected)


def test_no_gradient_flows_through_alpha_of_ciou():
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
def test_gradient_descent_moves_a_box_onto_a_disjoint_target(name):
    true = jnp.array([30.0, 30, 60, 50])
    gradient = jax.grad(LOSSES[name])
    box = jax.lax.fori_loop(
        0,
        2000,
        lambda step, box: box - 100 * 0.998**step * gradient(box, true),
        jnp.array([0.0, 0, 10, 10]),
    )
    assert boxes.iou(box, true) > 0.95


@each_loss
def test_padding_has_finite_losses_and_no_gradient(name):
    predicted, true = np.zeros_like(PAIRS)
    predicted[0], true[0] = [0, 0, 4, 4], [1, 1, 5, 5]
    mask = (np.arange(len(true)) < 1).astype(np.float32)
    loss, gradient = jax.device_get(loss_and_gradient(name, predicted, true, mask))
    none = np.zeros_like(mask)
    assert (loss * none).sum() == 0  # false for NaN
    assert not loss_and_gradient(name, predicted, true, none)[1].any()
    assert np.isfinite(gradient).all() and gradient[0].any() and not gradient[1:].any()
