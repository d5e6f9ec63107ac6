import inspect
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops
from jaxdet.ops import nms
from tests.reference import detection as reference

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "detection_ops.npz")
METHODS = {
    "nms": nms.nms,
    "linear": partial(nms.soft_nms, method="linear"),
    "gaussian": partial(nms.soft_nms, method="gaussian"),
    "weighted": nms.weighted_nms,
    "fusion": nms.weighted_boxes_fusion,
}
each_method = pytest.mark.parametrize("name", METHODS)
laws = settings(deadline=None, max_examples=12)
N, SIZE = 24, 33
iou = jax.jit(box_ops.iou)


STATIC = ("name", "max_detections", "score_reduction", "method", "original_scores", "overlap")


@partial(jax.jit, static_argnames=STATIC)
def compiled(name, *inputs, **options):
    return METHODS[name](*inputs, **options)


def run(name, *inputs, **options):
    """Detections as NumPy arrays; thresholds are inputs of one program, defaults included."""
    parameters = inspect.signature(METHODS[name]).parameters.items()
    defaults = {key: o.default for key, o in parameters if o.kind == o.KEYWORD_ONLY}
    options = defaults | {"max_detections": SIZE} | options
    return jax.device_get(compiled(name, *inputs, **options))


def random_boxes(seed, count=N, classes=2):
    """Crowded boxes, distinct scores, labels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 25, (count, 2))], -1).astype(np.float32)
    scores = (rng.permutation(count) + 1).astype(np.float32) / (count + 1)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


def rows(detections, labels=None):
    """Columns of the valid rows, as NumPy arrays."""
    valid = np.asarray(detections.valid)
    found = {name: np.asarray(column)[valid] for name, column in detections._asdict().items()}
    return found if labels is None else found | {"labels": labels[found["indices"]]}


soft_nms = partial(nms.soft_nms, original_scores=True)
GOLDEN_METHODS = {
    "nms": partial(nms.nms, iou_threshold=0.5),
    "soft_linear": partial(soft_nms, method="linear", iou_threshold=0.5),
    "soft_gaussian": partial(soft_nms, method="gaussian", sigma=0.5),
    "nmw": partial(nms.weighted_nms, iou_threshold=0.55),
    "wbf": partial(nms.weighted_boxes_fusion, iou_threshold=0.55),
}


@pytest.mark.parametrize("name", GOLDEN_METHODS)
def test_each_method_matches_golden_values(name):
    boxes, scores = (GOLDENS[f"sup_{k}"].astype(np.float32) for k in ("boxes", "scores"))
    labels = GOLDENS["sup_labels"].astype(np.int32)
    method = jax.jit(partial(GOLDEN_METHODS[name], max_detections=120))
    found = rows(method(boxes, scores, labels), labels)
    expected = {k: GOLDENS[f"sup_{name}_{k}"] for k in ("boxes", "scores", "labels")}
    assert len(found["scores"]) == len(expected["scores"])
    for label in np.unique(labels):  # classes are in the order of selection
        mine, true = (
            {
                key: column[table["labels"] == label]
                for key, column in table.items()
                if key != "indices"
            }
            for table in (found, expected)
        )
        if name == "wbf":  # golden values were sorted with an unstable sort
            mine, true = map(_sorted, (mine, true))
        for key in ("boxes", "scores"):
            np.testing.assert_allclose(mine[key], true[key], rtol=1e-5, atol=1e-6)


def _sorted(table):
    """Rows by score and, for equal scores, by box."""
    order = np.lexsort((table["boxes"][:, 0], table["scores"].round(5)))
    return {key: column[order] for key, column in table.items()}


@laws
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
def test_nms_matches_the_reference(seed, iou_threshold):
    inputs = random_boxes(seed)
    kept = rows(run("nms", *inputs, iou_threshold=iou_threshold))
    np.testing.assert_array_equal(kept["indices"], reference.nms(*inputs, iou_threshold))
    np.testing.assert_array_equal(kept["boxes"], inputs[0][kept["indices"]])


def test_nms_with_another_overlap_drops_boxes_inside_better_ones():
    inputs = np.float32([[0, 0, 8, 8], [1, 1, 3, 3], [6, 6, 12, 12]]), np.float32([0.9, 0.8, 0.7])
    options = {"iou_threshold": 0.5, "max_detections": 3}
    assert rows(run("nms", *inputs, None, **options))["indices"].tolist() == [0, 1, 2]
    options["overlap"] = box_ops.iom
    assert rows(run("nms", *inputs, None, **options))["indices"].tolist() == [0, 2]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@laws
@given(seed=st.integers(0, 10**6))
def test_soft_nms_matches_the_reference(method, seed):
    inputs = random_boxes(seed)
    options = {"iou_threshold": 0.3, "sigma": 0.4, "score_threshold": 0.01}
    kept = rows(run(method, *inputs, **options))
    order, values = reference.soft_nms(*inputs, method, **options)
    np.testing.assert_array_equal(kept["indices"], order)
    np.testing.assert_allclose(kept["scores"], values, rtol=1e-4)


@pytest.mark.parametrize("name", ["weighted", "fusion"])
@laws
@given(seed=st.integers(0, 10**6))
def test_merging_methods_match_the_reference(name, seed):
    inputs = random_boxes(seed)
    loop = {"weighted": reference.weighted_nms, "fusion": reference.weighted_boxes_fusion}[name]
    kept, expected = rows(run(name, *inputs, iou_threshold=0.4)), loop(*inputs, 0.4)
    assert len(expected) == len(kept["scores"])
    np.testing.assert_allclose(kept["scores"], [score for _, score in expected], rtol=1e-5)
    np.testing.assert_allclose(kept["boxes"], [box for box, _ in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score_reduction", ["mean", "max"])
def test_fused_scores_of_several_models(score_reduction):
    inputs = random_boxes(4, classes=1)
    options = {"num_models": 3, "score_reduction": score_reduction}
    kept = rows(run("fusion", *inputs, iou_threshold=0.3, **options))
    expected = reference.weighted_boxes_fusion(*inputs, 0.3, **options)
    np.testing.assert_allclose(kept["scores"], [value for _, value in expected], rtol=1e-5)


@each_method
def test_max_detections_only_truncates(name):
    inputs = random_boxes(1)
    more, whole, few = (run(name, *inputs, max_detections=size) for size in (SIZE, N, 5))
    if name == "fusion":  # sorted only after all boxes have joined
        assert len(few.scores) == 5 and set(few.indices) <= set(range(N))
    else:
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[:5], whole), few, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[:N], more), whole, rtol=1e-6)
    assert not more.valid[N:].any() and not more.boxes[N:].any() and not more.scores[N:].any()


@each_method
def test_zero_scores_and_equal_boxes(name):
    boxes, _, labels = random_boxes(2)
    nothing = run(name, boxes, np.zeros(N, np.float32), labels)
    assert not nothing.valid.any() and np.isfinite(nothing.boxes).all()
    same = np.broadcast_to(boxes[:1], (N, 4))
    one = run(name, same, np.full(N, 0.5, np.float32), iou_threshold=0.5)
    np.testing.assert_allclose(one.boxes[0], boxes[0], rtol=1e-6)
    if "gaussian" not in name:
        assert one.valid.sum() == 1


@each_method
def test_labels_separate_the_classes(name):
    boxes, scores, labels = random_boxes(6)
    joint = rows(run(name, boxes, scores, labels), labels)
    for label in (0, 1):
        alone = rows(run(name, boxes, np.where(labels == label, scores, 0)))
        mine = joint["labels"] == label
        for key in ("boxes", "scores"):
            np.testing.assert_allclose(joint[key][mine], alone[key], rtol=1e-5, atol=1e-5)


@each_method
def test_eager_jit_and_vmap_agree(name):
    batch = [np.stack(column) for column in zip(*map(random_boxes, (1, 2, 3)), strict=True)]
    one = partial(METHODS[name], max_detections=5)
    together = jax.device_get(jax.jit(jax.vmap(one))(*batch))
    apart = [run(name, *(column[i] for column in batch), max_detections=5) for i in range(3)]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *x: np.stack(x), *apart), rtol=1e-5)
    chex.assert_trees_all_close(one(*(column[0] for column in batch)), apart[0], rtol=1e-5)


@laws
@given(st.integers(0, 10**6))
def test_kept_boxes_are_apart_and_cover_the_rest(seed):
    boxes, scores, _ = random_boxes(seed)
    kept = rows(run("nms", boxes, scores, iou_threshold=0.4))
    overlap = np.asarray(iou(boxes[:, None], boxes[None]))[:, kept["indices"]]
    assert (np.diff(kept["scores"]) < 0).all()
    assert (overlap[kept["indices"]] - np.eye(len(kept["indices"])) <= 0.4).all()
    gone = np.setdiff1d(np.arange(N), kept["indices"])
    assert (overlap[gone] > 0.4).any(1).all()


@pytest.mark.parametrize(
    "function",
    [
        *(nms.nms, nms.soft_nms, partial(nms.soft_nms, original_scores=True), nms.weighted_nms),
        nms.weighted_boxes_fusion,
    ],
)
def test_no_boxes_give_no_detections(function):
    kept = jax.jit(lambda: function([], [], [], max_detections=3))()
    assert kept.boxes.shape == (3, 4) and not kept.valid.any()
    assert not kept.scores.any() and not kept.boxes.any() and not kept.indices.any()


def test_lists_are_taken_as_arrays():
    boxes, scores, labels = [[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]], [0.5, 0.9, 0.2], [0, 0, 1]
    kept = nms.nms(boxes, scores, labels, max_detections=3)
    assert kept.indices.tolist() == [1, 2, 0] and kept.valid.tolist() == [True, True, False]
