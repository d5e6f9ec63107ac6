import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import boxes
from tests import slow

PAIRS = 6  # boxes of a draw, so that a test compiles once


def corner_boxes(low=-20, high=20):
    """Boxes [PAIRS, 4], some empty or turned over; corners are halves, so that sums are exact."""
    halves = st.integers(2 * low, 2 * high).map(lambda n: n / 2)
    return hnp.arrays(np.float32, (PAIRS, 4), elements=halves)


def proper(corners):
    """The same corners in order: low before high."""
    x, y = np.sort(corners[:, ::2]), np.sort(corners[:, 1::2])
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=-1)


laws = settings(deadline=None, max_examples=40)


@laws
@given(corner_boxes(), corner_boxes())
def test_iou_of_all_pairs_is_the_loop(a, b):
    expected = [[slow.iou(one, other) for other in b] for one in a]
    np.testing.assert_allclose(boxes.iou(a[:, None], b[None]), expected, rtol=1e-6)


@laws
@given(corner_boxes(), corner_boxes())
def test_iou_is_symmetric_and_in_range(a, b):
    overlap = boxes.iou(a, b)
    chex.assert_trees_all_equal(overlap, boxes.iou(b, a))
    assert (overlap >= 0).all() and (overlap <= 1).all()


@laws
@given(corner_boxes().map(proper))
def test_iou_of_a_box_with_itself_is_one_unless_it_is_empty(a):
    np.testing.assert_array_equal(boxes.iou(a, a), boxes.area(a) > 0)


@laws
@given(corner_boxes(), corner_boxes(), st.integers(-50, 50), st.sampled_from([0.25, 2.0, 8.0]))
def test_iou_ignores_translation_and_scale(a, b, shift, scale):
    moved = boxes.iou(scale * (a + np.float32(shift)), scale * (b + np.float32(shift)))
    chex.assert_trees_all_equal(boxes.iou(a, b), moved)


@laws
@given(corner_boxes().map(proper), corner_boxes().map(proper))
def test_intersection_is_no_larger_than_either_box(a, b):
    shared = boxes.intersection(a, b)
    assert (shared <= np.minimum(boxes.area(a), boxes.area(b))).all()
    np.testing.assert_array_equal(boxes.intersection(a, a), boxes.area(a))


@laws
@given(corner_boxes())
def test_formats_go_round(a):
    chex.assert_trees_all_equal(jnp.asarray(a), boxes.from_xywh(boxes.to_xywh(a)))


@laws
@given(corner_boxes().map(proper))
def test_clip_is_the_intersection_with_the_image(a):
    image = np.array([[0, 0, 9, 7]], np.float32)
    clipped = boxes.clip(a, 7, 9)
    np.testing.assert_array_equal(boxes.area(clipped), boxes.intersection(a, image))
    chex.assert_trees_all_equal(clipped, boxes.clip(clipped, 7, 9))


def test_boxes_that_touch_share_nothing():
    left, right = jnp.array([0.0, 0, 2, 2]), jnp.array([2.0, 0, 4, 2])
    assert boxes.intersection(left, right) == boxes.iou(left, right) == 0


def test_xywh_is_corner_width_height():
    np.testing.assert_array_equal(boxes.from_xywh(jnp.array([2.0, 3, 4, 5])), [2, 3, 6, 8])


def test_jit_vmap_and_plain_agree():
    a, b = jax.random.uniform(jax.random.key(0), (2, PAIRS, 4)) * 10
    for f in (boxes.iou, boxes.intersection):
        plain = f(a, b)
        chex.assert_trees_all_close(plain, jax.jit(f)(a, b), jax.vmap(f)(a, b), rtol=1e-6)


@pytest.mark.parametrize(
    "a, b",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # two empty boxes in one place
        ([1, 1, 1, 1], [0, 0, 2, 2]),  # a point in a box
        ([0, 0, 2, 0], [0, 0, 2, 2]),  # a line along an edge
        ([3, 3, 1, 1], [3, 3, 1, 1]),  # turned over
        ([0, 0, 2, 2], [2, 2, 4, 4]),  # touching corners
        ([0, 0, 2, 2], [0, 0, 2, 2]),  # equal
    ],
)
def test_gradient_of_iou_is_finite_at_degenerate_boxes(a, b):
    gradients = jax.grad(boxes.iou, argnums=(0, 1))(jnp.array(a, float), jnp.array(b, float))
    chex.assert_tree_all_finite(gradients)


def test_gradient_of_iou_pulls_a_box_onto_its_target():
    gradient = jax.grad(boxes.iou)(jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 0, 3, 2]))
    assert gradient[0] > 0 and gradient[2] > 0  # both sides to the right raise the overlap


@laws
@given(hnp.arrays(np.float32, (5, 7), elements=st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.5])))
def test_tight_is_the_loop(image):
    np.testing.assert_array_equal(boxes.tight(image), slow.tight_box(image))


def test_tight_of_one_pixel_has_area_one_and_of_none_is_zeros():
    dark = jnp.zeros((5, 7))
    one = boxes.tight(dark.at[4, 6].set(0.1))
    np.testing.assert_array_equal(one, [6, 4, 7, 5])
    assert boxes.area(one) == 1
    np.testing.assert_array_equal(boxes.tight(dark), [0, 0, 0, 0])


def test_tight_under_jit_and_vmap():
    images = jax.random.uniform(jax.random.key(0), (4, 9, 8)) - 0.95
    plain = jnp.stack([boxes.tight(image) for image in images])
    chex.assert_trees_all_equal(plain, jax.jit(jax.vmap(boxes.tight))(images))


def test_a_box_has_four_numbers():
    with pytest.raises(AssertionError, match="shape"):
        boxes.area(jnp.zeros((3, 5)))
