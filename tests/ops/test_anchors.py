import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import anchors, boxes
from tests.reference import detection as reference

laws = settings(deadline=None, max_examples=30)
COUNT = 5


def proper():
    """Boxes [COUNT, 4] with an area, of halves of pixels."""
    low = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(-40, 40).map(lambda n: n / 2))
    side = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(2, 80).map(lambda n: n / 2))
    return st.tuples(low, side).map(lambda pair: np.concatenate([pair[0], sum(pair)], -1))


def test_points_are_centres_of_cells_level_after_level():
    points, strides = anchors.grid_centers([(2, 3), (1, 1)], [8, 32])
    expected = [[(j + 0.5) * 8, (i + 0.5) * 8] for i in range(2) for j in range(3)] + [[16, 16]]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(strides, [8] * 6 + [32])
    assert points.dtype == strides.dtype == np.float32


def test_anchor_boxes_have_the_areas_and_shapes_asked_for():
    points, strides = anchors.grid_centers([(1, 2)], [8])
    made = anchors.anchor_boxes(points, strides, scales=(2, 4), ratios=(0.5, 1, 2))
    chex.assert_shape(made, (12, 4))
    width, height = (made[:, 2:] - made[:, :2]).T
    np.testing.assert_allclose(width * height, ([256] * 3 + [1024] * 3) * 2, rtol=1e-6)
    np.testing.assert_allclose(height / width, [0.5, 1, 2] * 4, rtol=1e-6)
    np.testing.assert_allclose((made[:, :2] + made[:, 2:]) / 2, np.repeat(points, 6, 0), atol=1e-5)


@laws
@given(proper(), proper())
def test_offsets_are_those_of_one_box_after_the_other(true, from_boxes):
    found = anchors.encode(true, from_boxes)
    expected = [reference.encode_offsets(*pair) for pair in zip(true, from_boxes, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    boxes = [reference.decode_offsets(*pair) for pair in zip(found, from_boxes, strict=True)]
    np.testing.assert_allclose(anchors.decode(found, from_boxes), boxes, rtol=1e-4, atol=1e-3)


CONVERSIONS = {
    "encode": (anchors.encode, 4),
    "decode": (lambda offsets, anchor: anchors.decode(offsets / 64, anchor), 4),
    "distances": (anchors.boxes_to_ltrb, 2),
    "from_distances": (anchors.ltrb_to_boxes, 2),
}


@pytest.mark.parametrize("convert, width", CONVERSIONS.values(), ids=CONVERSIONS)
def test_jit_vmap_and_plain_agree_and_bfloat16_is_computed_in_float32(convert, width):
    low = np.random.default_rng(0).uniform(0, 400, (2, COUNT, 2)).astype(np.float32)
    one, other = np.concatenate([low, low + 33], -1)
    other = other[:, :width]
    plain = convert(one, other)
    chex.assert_trees_all_close(jax.jit(convert)(one, other), plain, rtol=1e-5)
    chex.assert_trees_all_close(jax.vmap(convert)(one, other), plain, rtol=1e-5)
    narrow = jnp.asarray(one, jnp.bfloat16), jnp.asarray(other, jnp.bfloat16)
    found = convert(*narrow)
    assert found.dtype == jnp.float32
    chex.assert_trees_all_equal(found, convert(*(x.astype(jnp.float32) for x in narrow)))


def test_boxes_without_an_area_have_finite_offsets_and_gradients():
    point, anchor = jnp.array([3.0, 4, 3, 4]), jnp.array([0.0, 0, 8, 8])
    offsets, pull = jax.vjp(anchors.encode, point, anchor)
    assert np.isfinite(offsets).all()
    chex.assert_tree_all_finite(pull(jnp.ones(4)))


@laws
@given(proper(), proper())
def test_decode_undoes_encode(true, from_boxes):
    offsets = anchors.encode(true, from_boxes)
    np.testing.assert_allclose(anchors.decode(offsets, from_boxes), true, atol=1e-3)


def test_offsets_worked_out_by_hand():
    offsets = anchors.encode(jnp.array([4.0, 0, 12, 16]), jnp.array([0.0, 0, 8, 8]))
    np.testing.assert_allclose(offsets, [0.5, 0.5, 0, np.log(2)], atol=1e-6)


def test_decode_stays_finite_and_has_a_gradient_for_wild_offsets():
    offsets, anchor = jnp.array([0.0, 0, 1000, 3]), jnp.array([0.0, 0, 8, 8])
    value, gradient = jax.value_and_grad(lambda o: anchors.decode(o, anchor).sum())(offsets)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@laws
@given(proper(), hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(-20, 20)))
def test_distances_and_back_and_their_sign(true, points):
    apart = anchors.boxes_to_ltrb(true, points)
    np.testing.assert_array_equal(anchors.ltrb_to_boxes(apart, points), true)
    dots = np.concatenate([points, points], -1)
    within = boxes.intersection(true, dots + np.float32([-0.25, -0.25, 0.25, 0.25])) == 0.25
    np.testing.assert_array_equal((apart > 0).all(-1), within)
