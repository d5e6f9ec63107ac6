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
    """Non-empty boxes [COUNT, 4], in multiples of half a pixel."""
    low = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(-40, 40).map(lambda n: n / 2))
    side = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(2, 80).map(lambda n: n / 2))
    return st.tuples(low, side).map(lambda pair: np.concatenate([pair[0], sum(pair)], -1))


def test_grid_centers_are_ordered_level_by_level():
    points, strides = anchors.grid_centers([(2, 3), (1, 1)], [8, 32])
    expected = [[(j + 0.5) * 8, (i + 0.5) * 8] for i in range(2) for j in range(3)] + [[16, 16]]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(strides, [8] * 6 + [32])
    assert points.dtype == strides.dtype == np.float32


def test_anchor_boxes_have_the_given_areas_and_aspect_ratios():
    points, strides = anchors.grid_centers([(1, 2)], [8])
    found = anchors.anchor_boxes(points, strides, scales=(2, 4), ratios=(0.5, 1, 2))
    chex.assert_shape(found, (12, 4))
    width, height = (found[:, 2:] - found[:, :2]).T
    np.testing.assert_allclose(width * height, ([256] * 3 + [1024] * 3) * 2, rtol=1e-6)
    np.testing.assert_allclose(height / width, [0.5, 1, 2] * 4, rtol=1e-6)
    np.testing.assert_allclose(
        (found[:, :2] + found[:, 2:]) / 2, np.repeat(points, 6, 0), atol=1e-5
    )


@laws
@given(proper(), proper())
def test_offsets_match_the_reference(true, anchor):
    found = anchors.encode(true, anchor)
    expected = [reference.encode_offsets(*pair) for pair in zip(true, anchor, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    boxes = [reference.decode_offsets(*pair) for pair in zip(found, anchor, strict=True)]
    np.testing.assert_allclose(anchors.decode(found, anchor), boxes, rtol=1e-4, atol=1e-3)


CONVERSIONS = {
    "encode": (anchors.encode, 4),
    "decode": (lambda offsets, anchor: anchors.decode(offsets / 64, anchor), 4),
    "boxes_to_ltrb": (anchors.boxes_to_ltrb, 2),
    "ltrb_to_boxes": (anchors.ltrb_to_boxes, 2),
}


@pytest.mark.parametrize("convert, width", CONVERSIONS.values(), ids=CONVERSIONS)
def test_eager_jit_and_vmap_agree_and_bfloat16_is_computed_in_float32(convert, width):
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


def test_empty_boxes_have_finite_offsets_and_gradients():
    point, anchor = jnp.array([3.0, 4, 3, 4]), jnp.array([0.0, 0, 8, 8])
    offsets, vjp = jax.vjp(anchors.encode, point, anchor)
    assert np.isfinite(offsets).all()
    chex.assert_tree_all_finite(vjp(jnp.ones(4)))


@laws
@given(proper(), proper())
def test_decode_inverts_encode(true, anchor):
    offsets = anchors.encode(true, anchor)
    np.testing.assert_allclose(anchors.decode(offsets, anchor), true, atol=1e-3)


def test_offsets_computed_by_hand():
    offsets = anchors.encode(jnp.array([4.0, 0, 12, 16]), jnp.array([0.0, 0, 8, 8]))
    np.testing.assert_allclose(offsets, [0.5, 0.5, 0, np.log(2)], atol=1e-6)


def test_decode_and_its_gradient_are_finite_for_large_offsets():
    offsets, anchor = jnp.array([0.0, 0, 1000, 3]), jnp.array([0.0, 0, 8, 8])
    value, gradient = jax.value_and_grad(lambda o: anchors.decode(o, anchor).sum())(offsets)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@laws
@given(proper(), hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(-20, 20)))
def test_ltrb_round_trip_and_signs(true, points):
    ltrb = anchors.boxes_to_ltrb(true, points)
    np.testing.assert_array_equal(anchors.ltrb_to_boxes(ltrb, points), true)
    dots = np.concatenate([points, points], -1)
    inside = boxes.intersection(true, dots + np.float32([-0.25, -0.25, 0.25, 0.25])) == 0.25
    np.testing.assert_array_equal((ltrb > 0).all(-1), inside)


def test_octave_scales_are_equal_steps_and_end_before_the_next_octave():
    assert anchors.octave_scales(1) == (4.0,)
    np.testing.assert_allclose(anchors.octave_scales(3), [4, 5.0397, 6.3496], rtol=1e-4)
