from functools import partial

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import boxes
from tests.reference import boxes as reference

PAIRS = 6  # boxes per example; fixed, so that a test compiles once


def corner_boxes(low=-20, high=20):
    """Boxes [PAIRS, 4], some empty or swapped; multiples of 1/2, so that sums are exact."""
    halves = st.integers(2 * low, 2 * high).map(lambda n: n / 2)
    return hnp.arrays(np.float32, (PAIRS, 4), elements=halves)


def proper(corners):
    """The same boxes with their corners in order."""
    x, y = np.sort(corners[:, ::2]), np.sort(corners[:, 1::2])
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=-1)


laws = settings(deadline=None, max_examples=40)


PLAIN = {"iou": boxes.iou, "giou": boxes.giou, "diou": boxes.diou, "ciou": boxes.ciou}
OVERLAPS = {name: jax.jit(overlap) for name, overlap in PLAIN.items()}
GRADIENTS = {name: jax.jit(jax.grad(overlap, (0, 1))) for name, overlap in PLAIN.items()}
from_xywh, to_xywh, iom = map(jax.jit, (boxes.from_xywh, boxes.to_xywh, boxes.iom))
area, intersection, union, enclosing_box, clip, mask_to_box = map(
    jax.jit,
    (
        boxes.area,
        boxes.intersection,
        boxes.union,
        boxes.enclosing_box,
        boxes.clip,
        boxes.mask_to_box,
    ),
)
LOWEST = {"iou": 0, "giou": -1, "diou": -1, "ciou": -1.5}
each_overlap = pytest.mark.parametrize("name", OVERLAPS)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)  # sums of a few terms up to 1


@each_overlap
@laws
@given(a=corner_boxes(), b=corner_boxes())
def test_overlap_of_all_pairs_matches_the_reference(name, a, b):
    loop = getattr(reference, name)
    expected = [[loop(one, other) for other in b.tolist()] for one in a.tolist()]
    close(OVERLAPS[name](a[:, None], b[None]), expected)


@each_overlap
@laws
@given(a=corner_boxes(), b=corner_boxes())
def test_overlap_is_symmetric_and_in_range(name, a, b):
    overlap = np.asarray(OVERLAPS[name](a, b))
    chex.assert_trees_all_equal(overlap, np.asarray(OVERLAPS[name](b, a)))
    assert (overlap >= LOWEST[name] - 1e-6).all() and (overlap <= 1).all()


@each_overlap
@laws
@given(a=corner_boxes().map(proper))
def test_overlap_of_a_box_with_itself_is_one_unless_it_is_empty(name, a):
    np.testing.assert_array_equal(OVERLAPS[name](a, a), area(a) > 0)


@each_overlap
@laws
@given(
    a=corner_boxes(),
    b=corner_boxes(),
    shift=st.integers(-50, 50),
    scale=st.sampled_from([0.25, 2.0, 8.0, 3.3]),
)
def test_overlap_is_invariant_under_translation_and_scale(name, a, b, shift, scale):
    moved = [np.float32(scale) * (corners + np.float32(shift)) for corners in (a, b)]
    rounding = 1e-4 if scale == 3.3 else 0  # scaling by powers of two is exact
    close(OVERLAPS[name](a, b), OVERLAPS[name](*moved), rtol=0, atol=rounding)


@laws
@given(corner_boxes(), corner_boxes())
def test_penalties_never_raise_the_overlap(a, b):
    iou, giou, diou, ciou = (np.asarray(overlap(a, b)) for overlap in OVERLAPS.values())
    assert (giou <= iou).all() and (ciou <= diou).all() and (diou <= iou).all()


def test_overlaps_computed_by_hand():
    a, b = (
        np.float32([0, 0, 2, 2]),
        np.float32([1, 1, 5, 3]),
    )  # intersection 1, union 11, enclosing 15
    np.testing.assert_array_equal(union(a, b), 11)
    np.testing.assert_array_equal(enclosing_box(a, b), [0, 0, 5, 3])
    v = 4 / np.pi**2 * (np.arctan(1) - np.arctan(2)) ** 2
    diou = 1 / 11 - (2**2 + 1**2) / (5**2 + 3**2)
    expected = [1 / 11, 1 / 11 - 4 / 15, diou, diou - v**2 / (1 - 1 / 11 + v)]
    close([overlap(a, b) for overlap in OVERLAPS.values()], expected)


@laws
@given(corner_boxes(), corner_boxes())
def test_intersection_over_the_smaller_area_matches_the_reference(a, b):
    expected = [[reference.iom(one, other) for other in b.tolist()] for one in a.tolist()]
    found = iom(a[:, None], b[None])
    close(found, expected)
    np.testing.assert_array_equal(found, iom(b[:, None], a[None]).T)


def test_intersection_over_the_smaller_area_of_nested_and_empty_boxes():
    a, inside, dot = np.float32([[0, 0, 4, 4], [1, 1, 2, 3], [1, 1, 1, 1]])
    assert iom(a, inside) == iom(a, a) == 1 and iom(a, dot) == iom(dot, dot) == 0
    gradients = jax.jit(jax.grad(iom, (0, 1)))(dot, a)
    chex.assert_tree_all_finite(jax.device_get(gradients))


def test_overlap_of_disjoint_nested_and_empty_boxes():
    near, far = np.float32([[2, 0, 4, 2], [6, 0, 8, 2]])  # touching, and further away
    a, dot = np.float32([0, 0, 2, 2]), np.float32([1, 1, 1, 1])
    for name in ("giou", "diou", "ciou"):  # where IoU is 0 for both
        assert OVERLAPS[name](a, far) < OVERLAPS[name](a, near) <= 0
    inside = np.float32([[0, 0, 1, 1], [0.5, 0.5, 1.5, 1.5]])  # in a corner, in the middle
    close([OVERLAPS["giou"](a, box) for box in inside], [0.25, 0.25])
    close([OVERLAPS["diou"](a, box) for box in inside], [0.25 - 1 / 16, 0.25])
    close([overlap(dot, dot) for overlap in OVERLAPS.values()], [0, 0, 0, 0])
    close([overlap(a, dot) for overlap in OVERLAPS.values()], [0, 0, 0, -1 / 20])  # v = 1 / 4


@each_overlap
def test_overlap_of_bfloat16_boxes_is_computed_in_float32(name):
    random = np.random.default_rng(1).uniform(0, 300, (2, PAIRS, 4))
    a, b = random.astype(jnp.bfloat16)
    overlap = OVERLAPS[name](a, b)
    assert overlap.dtype == area(a).dtype == jnp.float32
    expected = OVERLAPS[name](a.astype(np.float32), b.astype(np.float32))
    chex.assert_trees_all_equal(overlap, expected)


def test_eps_is_added_to_denominators():
    a, b = np.float32([0, 0, 2, 2]), np.float32([1, 1, 5, 3])
    for name, overlap in OVERLAPS.items():
        close(overlap(a, b, eps=0.5), getattr(reference, name)(a.tolist(), b.tolist(), 0.5))


@laws
@given(corner_boxes(), corner_boxes())
def test_enclosing_box_matches_the_reference_and_bounds_the_union(a, b):
    enclosing = np.asarray(enclosing_box(a, b))
    np.testing.assert_array_equal(
        enclosing, [reference.enclosing_box(*pair) for pair in zip(a, b, strict=True)]
    )
    unions = np.asarray(union(a, b))
    assert (unions >= np.maximum(area(a), area(b))).all()
    assert (unions <= area(enclosing)).all()


@laws
@given(corner_boxes().map(proper), corner_boxes().map(proper))
def test_intersection_is_no_larger_than_either_box(a, b):
    shared = np.asarray(intersection(a, b))
    assert (shared <= np.minimum(area(a), area(b))).all()
    np.testing.assert_array_equal(intersection(a, a), area(a))


@laws
@given(corner_boxes())
def test_xywh_round_trip(a):
    chex.assert_trees_all_equal(a, np.asarray(from_xywh(to_xywh(a))))


@laws
@given(corner_boxes().map(proper))
def test_clip_is_the_intersection_with_the_image(a):
    image = np.array([[0, 0, 9, 7]], np.float32)
    clipped = clip(a, 7, 9)
    np.testing.assert_array_equal(area(clipped), intersection(a, image))
    chex.assert_trees_all_equal(clipped, clip(clipped, 7, 9))


def test_boxes_that_touch_do_not_intersect():
    left, right = np.float32([0, 0, 2, 2]), np.float32([2, 0, 4, 2])
    assert intersection(left, right) == OVERLAPS["iou"](left, right) == 0


def test_xywh_is_top_left_corner_width_and_height():
    np.testing.assert_array_equal(boxes.from_xywh(jnp.array([2.0, 3, 4, 5])), [2, 3, 6, 8])


def test_cxcywh_is_center_width_height():
    np.testing.assert_array_equal(boxes.from_cxcywh(jnp.array([4.0, 6, 4, 2])), [2, 5, 6, 7])


def test_yxyx_is_corners_with_y_first():
    np.testing.assert_array_equal(boxes.from_yxyx(jnp.array([[1.0, 2, 3, 4]])), [[2, 1, 4, 3]])


@pytest.mark.parametrize(
    "convert", [boxes.from_xywh, boxes.to_xywh, boxes.from_cxcywh, boxes.from_yxyx]
)
def test_conversions_keep_numpy_arrays_and_their_precision(convert):
    found = convert(np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    np.testing.assert_allclose(found, convert(jnp.array([[0.1, 0.2, 0.3, 0.4]])), rtol=1e-6)


def test_eager_jit_and_vmap_agree():
    a, b = np.random.default_rng(0).uniform(0, 10, (2, PAIRS, 4)).astype(np.float32)
    for f in (*PLAIN.values(), boxes.intersection, boxes.union, boxes.enclosing_box):
        plain = f(a, b)
        chex.assert_trees_all_close(plain, jax.jit(f)(a, b), jax.vmap(f)(a, b), rtol=1e-5)


@each_overlap
@pytest.mark.parametrize(
    "a, b",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # equal points
        ([1, 1, 1, 1], [0, 0, 2, 2]),  # a point in a box
        ([0, 0, 0, 0], [3, 0, 3, 0]),  # two points on a line
        ([0, 0, 2, 0], [0, 0, 2, 2]),  # a line along an edge
        ([0, 0, 2, 0], [0, 0, 2, 0]),  # one line twice
        ([3, 3, 1, 1], [3, 3, 1, 1]),  # swapped corners
        ([3, 3, 1, 1], [1, 1, 0, 0]),  # swapped, touching corners
        ([0, 0, 2, 2], [2, 2, 4, 4]),  # touching corners
        ([0, 0, 2, 2], [0, 0, 2, 2]),  # equal
    ],
)
def test_overlap_gradients_are_finite_for_degenerate_boxes(name, a, b):
    for eps in (0.0, 1e-7):
        gradients = jax.device_get(GRADIENTS[name](np.float32(a), np.float32(b), eps=eps))
        chex.assert_tree_all_finite(gradients)
        assert np.abs(gradients).max() < 10


def test_iou_gradient_moves_a_box_towards_its_target():
    gradient, _ = GRADIENTS["iou"](np.float32([0, 0, 2, 2]), np.float32([1, 0, 3, 2]), eps=0.0)
    assert gradient[0] > 0 and gradient[2] > 0  # moving both sides to the right raises the IoU


@laws
@given(hnp.arrays(np.float32, (5, 7), elements=st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.5])))
def test_mask_to_box_matches_the_reference(image):
    np.testing.assert_array_equal(mask_to_box(image), reference.mask_to_box(image))


def test_mask_to_box_of_one_pixel_has_area_one_and_of_no_pixel_is_zeros():
    image = np.zeros((5, 7), np.float32)
    np.testing.assert_array_equal(mask_to_box(image), [0, 0, 0, 0])
    image[4, 6] = 0.1
    one = mask_to_box(image)
    np.testing.assert_array_equal(one, [6, 4, 7, 5])
    assert area(one) == 1


def test_mask_to_box_under_jit_and_vmap():
    images = np.random.default_rng(0).uniform(-0.95, 0.05, (4, 9, 8)).astype(np.float32)
    plain = jnp.stack([boxes.mask_to_box(image) for image in images])
    chex.assert_trees_all_equal(plain, jax.jit(jax.vmap(boxes.mask_to_box))(images))


def test_boxes_must_have_four_numbers():
    with pytest.raises(AssertionError, match="shape"):
        boxes.area(jnp.zeros((3, 5)))


def test_bfloat16_boxes_are_clipped_and_converted_in_float32():
    narrow = jnp.array([100, 2, 900, 300], jnp.bfloat16)
    np.testing.assert_array_equal(boxes.clip(narrow, 251, 833), [100, 2, 833, 251])
    np.testing.assert_array_equal(boxes.from_xywh(narrow)[2:], [float(narrow[2]) + 100, 302])
    assert boxes.to_xywh(narrow).dtype == jnp.float32
