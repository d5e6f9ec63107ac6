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
largest_overlap = jax.jit(assign.max_iou, static_argnames=("classes", "positive", "at_least_one"))
iou, inside = jax.jit(boxes.iou), jax.jit(assign.points_in_boxes)


def aligned(*given, **how):
    """Targets as NumPy arrays."""
    return jax.device_get(task_aligned(*given, **how))


def drawn(seed, classes=3, slots=6, used=4, shapes=((6, 6), (3, 3))):
    """Random inputs of an assignment, crowded so that boxes contend for cells."""
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
def test_task_aligned_is_the_golden_one(case):
    how = {name: CASES[case][name] for name in ("topk", "alpha", "beta", "overlap")}
    given = [GOLDENS[f"tal{case}_{name}"] for name in INPUTS]
    axes = (0, 0, None, 0, 0, 0)
    found = jax.jit(jax.vmap(partial(assign.task_aligned, **how), axes))(*given)
    wanted = {n: GOLDENS[f"tal{case}_{n}"] for n in ("assigned", "assigned_index")}
    np.testing.assert_array_equal(found.positive, wanted["assigned"])
    on = wanted["assigned"]
    assert on[1:].any() and not on[0].any()
    np.testing.assert_array_equal(np.asarray(found.index)[on], wanted["assigned_index"][on])
    np.testing.assert_allclose(
        found.scores, GOLDENS[f"tal{case}_target_scores"], rtol=1e-5, atol=1e-6
    )
    true = GOLDENS[f"tal{case}_target_boxes"]
    np.testing.assert_array_equal(np.asarray(found.boxes)[on], true[on])


def test_seed_002_has_alpha_and_beta_of_toods_paper_the_other_way_round():
    given, seeds = drawn(11), {"alpha": 6.0, "beta": 1.0}
    papers = {"topk": 5, "alpha": seeds["beta"], "beta": seeds["alpha"]}
    found, paper = aligned(*given, topk=5, **seeds), aligned(*given, **papers)
    expected = reference.task_aligned(*given, topk=5, **seeds)
    np.testing.assert_array_equal(found.positive, expected[0])
    np.testing.assert_allclose(found.scores, expected[2], rtol=2e-4, atol=1e-6)
    assert (found.positive != paper.positive).any()


@pytest.mark.parametrize("overlap", ["iou", "ciou"])
@laws
@given(seed=st.integers(0, 10**6), topk=st.sampled_from([1, 4, 60]))
def test_task_aligned_is_the_loop(overlap, seed, topk):
    given = drawn(seed)
    how = {"topk": topk, "alpha": 0.5, "beta": 2.0}
    found = aligned(*given, overlap=overlap, **how)
    expected = reference.task_aligned(*given, iou_fn=getattr(reference_boxes, overlap), **how)
    np.testing.assert_array_equal(found.positive, expected[0])
    np.testing.assert_array_equal(found.index, expected[1])
    np.testing.assert_allclose(found.scores, expected[2], rtol=2e-4, atol=1e-6)
    on = expected[0]
    np.testing.assert_array_equal(found.boxes[on], expected[3][on])


@laws
@given(st.integers(0, 10**6))
def test_laws_of_task_aligned(seed):
    scores, predicted, points, true, labels, valid = drawn(seed)
    how = {"topk": 4, "alpha": 1.0, "beta": 6.0, "overlap": "iou"}
    found = aligned(scores, predicted, points, true, labels, valid, **how)
    on, index = found.positive, found.index
    within = np.asarray(inside(points, true))  # [G, A]
    shared = np.asarray(iou(true[:, None], predicted[None]))  # [G, A]
    assert valid[index[on]].all() and within[index[on], np.flatnonzero(on)].all()
    for g in range(len(valid)):
        mine = on & (index == g)
        assert mine.sum() <= 4
        if mine.any():
            best = shared[g, mine].max()
            metric = scores[mine, labels[g]] * shared[g, mine] ** 6
            if metric.max() > 1e-3:  # below, the divisor's guard is felt
                np.testing.assert_allclose(found.scores[mine].max(), best, rtol=1e-4)
    assert not found.scores[~on].any()


def test_order_and_padding_of_slots_change_nothing():
    scores, predicted, points, true, labels, valid = drawn(7)
    plain = aligned(scores, predicted, points, true, labels, valid)
    turned = aligned(scores, predicted, points, true[::-1], labels[::-1], valid[::-1], topk=13)
    more = [np.concatenate([x, np.zeros((94, *x.shape[1:]), x.dtype)]) for x in (true, labels)]
    padded = aligned(scores, predicted, points, *more, np.concatenate([valid, np.zeros(94, bool)]))
    chex.assert_trees_all_equal(plain, padded)
    chex.assert_trees_all_equal(plain.scores, turned.scores)
    on = plain.positive
    np.testing.assert_array_equal(turned.index[on], len(valid) - 1 - plain.index[on])


def test_no_object_and_fewer_cells_than_topk():
    scores, predicted, points, true, labels, valid = drawn(3)
    none = aligned(scores, predicted, points, true, labels, valid & False)
    assert not none.positive.any() and not none.scores.any()
    few = [x[:2] for x in (scores, predicted, points)]
    assert aligned(*few, true, labels, valid, topk=13).positive.sum() <= 2


def test_no_gradient_passes_through_targets_and_all_forms_agree():
    scores, predicted, points, true, labels, valid = drawn(5)

    def total(scores, predicted):
        found = task_aligned(scores, predicted, points, true, labels, valid)
        return found.scores.sum() + found.boxes.sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(scores, predicted)
    assert not any(np.asarray(g).any() for g in gradients)
    plain = assign.task_aligned(scores, predicted, points, true, labels, valid)
    jitted = task_aligned(scores, predicted, points, true, labels, valid)
    chex.assert_trees_all_close(plain, jitted, rtol=1e-6)
    narrow = scores.astype(jnp.bfloat16), predicted.astype(jnp.bfloat16)
    wide = [x.astype(np.float32) for x in narrow]
    chex.assert_trees_all_equal(
        *(aligned(*given, points, true, labels, valid) for given in (narrow, wide))
    )


@pytest.mark.parametrize("at_least_one", [True, False])
@laws
@given(seed=st.integers(0, 10**6))
def test_largest_overlap_is_the_loop(at_least_one, seed):
    _, _, points, true, labels, valid = drawn(seed)
    made = anchors.anchor_boxes(points, np.repeat([8, 16], [36, 9]), scales=(1.5,), ratios=(0.5, 1))
    how = {"positive": 0.4, "at_least_one": at_least_one}
    found = jax.device_get(largest_overlap(made, true, labels, valid, classes=3, **how))
    shared = np.asarray(iou(true[:, None], made[None]), np.float64)
    on, index = reference_detection.max_iou(made, true, valid, **how)
    near = (abs(shared[valid] - 0.4) < 1e-5).any() or _tied(shared[valid])
    if not near:  # where rounding decides, the two may differ
        np.testing.assert_array_equal(found.positive, on)
        np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.scores.sum(1), found.positive)
    chosen = found.positive
    np.testing.assert_array_equal(found.scores.argmax(1)[chosen], labels[found.index[chosen]])


def _tied(shared):
    """Whether an anchor's two best boxes, or a box's two best anchors, are nearly the same."""
    for table in (shared, shared.T):
        best = np.sort(table, -1)[:, -2:]
        if ((best[:, 1] > 0) & (best[:, 1] - best[:, 0] < 1e-6)).any():
            return True
    return False
