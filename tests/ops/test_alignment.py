"""Similarity transforms against singular values, and by their laws."""

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxdet.ops import alignment
from tests.reference import alignment as reference

laws = settings(deadline=None, max_examples=30)
points = hnp.arrays(np.float32, (5, 2), elements=st.integers(-60, 60).map(float))
similarity = jax.jit(alignment.similarity_transform)


def spread(points):
    """Sum of squared distances from the mean."""
    return ((points - points.mean(0)) ** 2).sum()


@laws
@given(points, points)
def test_the_transform_is_the_one_by_singular_values(source, target):
    assume(spread(source) > 10)
    values = np.linalg.svd((target - target.mean(0)).T @ (source - source.mean(0)))[1]
    assume(values[0] - values[1] > 1)  # else a rotation and a reflection are equally good
    expected = reference.similarity_transform(source, target)
    np.testing.assert_allclose(similarity(source, target), expected, rtol=1e-3, atol=1e-3)


@laws
@given(points, st.floats(0.2, 5), st.floats(-3, 3), st.tuples(*[st.floats(-50, 50)] * 2))
def test_a_similarity_is_recovered(source, scale, angle, offset):
    assume(spread(source) > 10)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.float32([[cos, -sin, offset[0]], [sin, cos, offset[1]]])
    found = similarity(source, np.asarray(alignment.apply(matrix, source)))
    np.testing.assert_allclose(found, matrix, rtol=1e-3, atol=5e-3)


def test_no_other_similarity_is_better():
    draw = np.random.default_rng(0)
    source, target = draw.uniform(0, 40, (2, 5, 2)).astype(np.float32)

    def error(a, b, x, y):
        matrix = np.array([[a, -b, x], [b, a, y]])
        moved = source @ matrix[:, :2].T + matrix[:, 2]
        return ((moved - target) ** 2).sum()

    best = np.asarray(similarity(source, target))
    numbers = np.array([best[0, 0], best[1, 0], *best[:, 2]])
    for change in draw.normal(0, [0.05, 0.05, 1, 1], (100, 4)):
        assert error(*numbers) < error(*(numbers + change))


def test_equal_points_move_to_the_mean_with_finite_gradients():
    source, target = np.ones((5, 2), np.float32), np.float32(alignment.FACE_TEMPLATE)
    expected = np.column_stack([np.zeros((2, 2)), target.mean(0)])
    np.testing.assert_allclose(similarity(source, target), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: similarity(x, target).sum()))(source)
    assert np.isfinite(gradient).all()


def test_batches_broadcast():
    source = np.random.default_rng(1).uniform(0, 9, (3, 2, 5, 2)).astype(np.float32)
    found = similarity(source, alignment.FACE_TEMPLATE)
    assert found.shape == (3, 2, 2, 3)
    one = similarity(source[1, 1], alignment.FACE_TEMPLATE)
    np.testing.assert_allclose(found[1, 1], one, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(similarity, (0, None))(source[0], alignment.FACE_TEMPLATE)
    np.testing.assert_allclose(found[0], mapped, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        similarity(source[..., :1], alignment.FACE_TEMPLATE)


def test_the_template_is_a_face():
    left, right, nose, *mouth = alignment.FACE_TEMPLATE
    assert 0 < left[0] < nose[0] < right[0] < 1 and mouth[0][0] < nose[0] < mouth[1][0]
    assert left[1] < nose[1] < mouth[0][1] < 1
