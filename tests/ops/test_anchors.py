import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import anchors, boxes

laws = settings(deadline=None, max_examples=30)
COUNT = 5


def proper():
    """Boxes [COUNT, 4] with an area, of halves of pixels."""
    low = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(-40, 40).map(lambda n: n / 2))
    side = hnp.arrays(np.float32, (COUNT, 2), elements=st.integers(2, 80).map(lambda n: n / 2))
    return st.tuples(low, side).map(lambda pair: np.concatenate([pair[0], sum(pair)], -1))


def test_points_are_centres_of_cells_level_after_level():
    points, strides = anchors.points([(2, 3), (1, 1)], [8, 32])
    expected = [[(j + 0.5) * 8, (i + 0.5) * 8] for i in range(2) for j in range(3)] + [[16, 16]]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(strides, [8] * 6 + [32])
    assert points.dtype == strides.dtype == np.float32


def test_anchor_boxes_have_the_areas_and_shapes_asked_for():
    points, strides = anchors.points([(1, 2)], [8])
    made = anchors.around(points, strides, scales=(2, 4), ratios=(0.5, 1, 2))
    chex.assert_shape(made, (12, 4))
    width, height = (made[:, 2:] - made[:, :2]).T
    np.testing.assert_allclose(width * height, ([256] * 3 + [1024] * 3) * 2, rtol=1e-6)
    np.testing.assert_allclose(height / width, [0.5, 1, 2] * 4, rtol=1e-6)
    np.testing.assert_allclose((made[:, :2] + made[:, 2:]) / 2, np.repeat(points, 6, 0), atol=1e-5)


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
    apart = anchors.distances(true, points)
    np.testing.assert_array_equal(anchors.from_distances(apart, points), true)
    dots = np.concatenate([points, points], -1)
    within = boxes.intersection(true, dots + np.float32([-0.25, -0.25, 0.25, 0.25])) == 0.25
    np.testing.assert_array_equal((apart > 0).all(-1), within)
