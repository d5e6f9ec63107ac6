import json
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lib import reference
from jaxdet.ops import anchors, assign, boxes
from tests.reference import boxes as reference_boxes
from tests.reference import detection as reference_detection

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "detection_ops.npz")
CASES = json.loads(str(GOLDENS["tal_cases"]))
INPUTS = ("scores", "boxes", "points", "true_boxes", "true_labels", "true_valid")
laws = settings(deadline=None, max_examples=15)
task_aligned = jax.jit(assign.task_aligned, static_argnames=("topk", "overlap"))
max_iou = jax.jit(
    assign.max_iou, static_argnames=("num_classes", "positive_iou", "allow_low_quality")
)
iou, inside = jax.jit(boxes.iou), jax.jit(assign.points_in_boxes)


def aligned(*inputs, **options):
    """Targets of `task_aligned` as NumPy arrays."""
    return jax.device_get(task_aligned(*inputs, **options))


def random_inputs(seed, classes=3, slots=6, used=4, shapes=((6, 6), (3, 3))):
    """Random inputs of an assignment, crowded so that boxes compete for cells."""
    rng = np.random.default_rng(seed)
    points, strides = anchors.grid_centers(shapes, (8, 16))
    low = rng.uniform(-4, 36, (slots, 2))
    true = np.concatenate([low, low + rng.uniform(0, 30, (slots, 2))], -1).astype(np.float32)
    reach = rng.uniform(0.2, 2.5, (len(points), 4)) * strides[:, None]
    predicted = np.concatenate([points - reach[:, :2], points + reach[:, 2:]], -1)
    predicted = predicted.astype(np.float32)
    scores = rng.uniform(0, 1, (len(points), classes)).astype(np.float32)
    labels = rng.integers(0, classes, slots).astype(np.int32)
    return scores, predicted, points, true, labels, np.arange(slots) < used


@pytest.mark.parametrize("case", range(len(CASES)))
def test_task_aligned_matches_golden_values(case):
    options = {name: CASES[case][name] for name in ("topk", "alpha", "beta", "overlap")}
    inputs = [GOLDENS[f"tal{case}_{name}"] for name in INPUTS]
    axes = (0, 0, None, 0, 0, 0)
    found = jax.jit(jax.vmap(partial(assign.task_aligned, **options), axes))(*inputs)
    expected = {n: GOLDENS[f"tal{case}_{n}"] for n in ("assigned", "assigned_index")}
    np.testing.assert_array_equal(found.positive, expected["assigned"])
    on = expected["assigned"]
    assert on[1:].any() and not on[0].any()
    np.testing.assert_array_equal(np.asarray(found.indices)[on], expected["assigned_index"][on])
    np.testing.assert_allclose(
        found.scores, GOLDENS[f"tal{case}_target_scores"], rtol=1e-5, atol=1e-6
    )
    true = GOLDENS[f"tal{case}_target_boxes"]
    np.testing.assert_array_equal(np.asarray(found.boxes)[on], true[on])


def test_swapping_alpha_and_beta_changes_the_targets():
    inputs, swapped = random_inputs(11), {"alpha": 6.0, "beta": 1.0}
    original = {"topk": 5, "alpha": swapped["beta"], "beta": swapped["alpha"]}
    found, paper = aligned(*inputs, topk=5, **swapped), aligned(*inputs, **original)
    expected = reference.task_aligned(*inputs, topk=5, **swapped)
    np.testing.assert_array_equal(found.positive, expected[0])
    np.testing.assert_allclose(found.scores, expected[2], rtol=2e-4, atol=1e-6)
    assert (found.positive != paper.positive).any()


@pytest.mark.parametrize("overlap", ["iou", "ciou"])
@laws
@given(seed=st.integers(0, 10**6), topk=st.sampled_from([1, 4, 60]))
def test_task_aligned_matches_the_reference(overlap, seed, topk):
    inputs = random_inputs(seed)
    options = {"topk": topk, "alpha": 0.5, "beta": 2.0}
    found = aligned(*inputs, overlap=overlap, **options)
    expected = reference.task_aligned(*inputs, iou_fn=getattr(reference_boxes, overlap), **options)
    np.testing.assert_array_equal(found.positive, expected[0])
    np.testing.assert_array_equal(found.indices, expected[1])
    np.testing.assert_allclose(found.scores, expected[2], rtol=2e-4, atol=1e-6)
    on = expected[0]
    np.testing.assert_array_equal(found.boxes[on], expected[3][on])


@laws
@given(st.integers(0, 10**6))
def test_invariants_of_task_aligned(seed):
    scores, predicted, points, true, labels, valid = random_inputs(seed)
    options = {"topk": 4, "alpha": 1.0, "beta": 6.0, "overlap": "iou"}
    found = aligned(scores, predicted, points, true, labels, valid, **options)
    on, index = found.positive, found.indices
    inside_box = np.asarray(inside(points, true))  # [G, A]
    overlaps = np.asarray(iou(true[:, None], predicted[None]))  # [G, A]
    assert valid[index[on]].all() and inside_box[index[on], np.flatnonzero(on)].all()
    for g in range(len(valid)):
        assigned = on & (index == g)
        assert assigned.sum() <= 4
        if assigned.any():
            best = overlaps[g, assigned].max()
            metric = scores[assigned, labels[g]] * overlaps[g, assigned] ** 6
            if metric.max() > 1e-3:  # below, EPS in the denominator matters
                np.testing.assert_allclose(found.scores[assigned].max(), best, rtol=1e-4)
    assert not found.scores[~on].any()


def test_order_and_padding_of_slots_do_not_matter():
    scores, predicted, points, true, labels, valid = random_inputs(7)
    plain = aligned(scores, predicted, points, true, labels, valid)
    reversed_ = aligned(scores, predicted, points, true[::-1], labels[::-1], valid[::-1], topk=13)
    more = [np.concatenate([x, np.zeros((94, *x.shape[1:]), x.dtype)]) for x in (true, labels)]
    padded = aligned(scores, predicted, points, *more, np.concatenate([valid, np.zeros(94, bool)]))
    chex.assert_trees_all_equal(plain, padded)
    chex.assert_trees_all_equal(plain.scores, reversed_.scores)
    on = plain.positive
    np.testing.assert_array_equal(reversed_.indices[on], len(valid) - 1 - plain.indices[on])


def test_images_without_objects_and_with_fewer_cells_than_topk():
    scores, predicted, points, true, labels, valid = random_inputs(3)
    none = aligned(scores, predicted, points, true, labels, valid & False)
    assert not none.positive.any() and not none.scores.any()
    subset = [x[:2] for x in (scores, predicted, points)]
    assert aligned(*subset, true, labels, valid, topk=13).positive.sum() <= 2


def test_targets_pass_no_gradient_and_eager_jit_and_bfloat16_agree():
    scores, predicted, points, true, labels, valid = random_inputs(5)

    def total(scores, predicted):
        found = task_aligned(scores, predicted, points, true, labels, valid)
        return found.scores.sum() + found.boxes.sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(scores, predicted)
    assert not any(np.asarray(g).any() for g in gradients)
    plain = assign.task_aligned(scores, predicted, points, true, labels, valid)
    jitted = task_aligned(scores, predicted, points, true, labels, valid)
    chex.assert_trees_all_close(plain, jitted, rtol=1e-6)
    narrow = scores.astype(jnp.bfloat16), predicted.astype(jnp.bfloat16)
    widened = [x.astype(np.float32) for x in narrow]
    chex.assert_trees_all_equal(
        *(aligned(*inputs, points, true, labels, valid) for inputs in (narrow, widened))
    )


@pytest.mark.parametrize("allow_low_quality", [True, False])
@laws
@given(seed=st.integers(0, 10**6))
def test_max_iou_matches_the_reference(allow_low_quality, seed):
    _, _, points, true, labels, valid = random_inputs(seed)
    anchor_boxes = anchors.anchor_boxes(
        points, np.repeat([8, 16], [36, 9]), scales=(1.5,), ratios=(0.5, 1)
    )
    options = {"positive_iou": 0.4, "allow_low_quality": allow_low_quality}
    found = jax.device_get(max_iou(anchor_boxes, true, labels, valid, num_classes=3, **options))
    overlaps = np.asarray(iou(true[:, None], anchor_boxes[None]), np.float64)
    on, index = reference_detection.max_iou(anchor_boxes, true, valid, **options)
    near = (abs(overlaps[valid] - 0.4) < 1e-5).any() or _tied(overlaps[valid])
    if not near:  # rounding decides near the threshold and between ties
        np.testing.assert_array_equal(found.positive, on)
        np.testing.assert_array_equal(found.indices, index)
    np.testing.assert_array_equal(found.scores.sum(1), found.positive)
    chosen = found.positive
    np.testing.assert_array_equal(found.scores.argmax(1)[chosen], labels[found.indices[chosen]])


def _tied(overlaps):
    """Whether the two best boxes of an anchor, or two best anchors of a box, nearly tie."""
    for table in (overlaps, overlaps.T):
        best = np.sort(table, -1)[:, -2:]
        if ((best[:, 1] > 0) & (best[:, 1] - best[:, 0] < 1e-6)).any():
            return True
    return False


CELLS = [[0.9, 0.1], [0.2, 0.8]], [[0, 0, 4, 4], [4, 0, 8, 4]], [[2.0, 2.0], [6.0, 2.0]]
OBJECTS = [[0, 0, 4, 4]], [1], [True]


def test_no_objects_are_assigned_to_no_cell_and_lists_are_taken_as_arrays():
    @jax.jit
    def both(objects):
        aligned = assign.task_aligned(*CELLS, *objects)
        return aligned, assign.max_iou(CELLS[1], *objects, num_classes=2)

    for targets in both(OBJECTS):
        assert targets.positive.tolist() == [True, False] and targets.scores.shape == (2, 2)
    for targets in both(([], [], [])):
        assert not targets.positive.any() and not targets.scores.any()
        assert targets.scores.shape == (2, 2) and targets.boxes.shape == (2, 4)


def test_no_cells_have_no_targets():
    none = np.zeros((0, 2)), np.zeros((0, 4)), np.zeros((0, 2))
    for targets in (
        assign.task_aligned(*none, *OBJECTS),
        assign.max_iou(np.zeros((0, 4)), *OBJECTS, num_classes=2),
    ):
        assert [column.shape for column in targets] == [(0,), (0,), (0, 2), (0, 4)]
