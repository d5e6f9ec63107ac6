import inspect
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import boxes as shapes
from jaxdet.ops import nms
from tests.reference import detection as reference

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "detection_ops.npz")
WAYS = {
    "hard": nms.nms,
    "linear": partial(nms.soft_nms, kind="linear"),
    "gaussian": partial(nms.soft_nms, kind="gaussian"),
    "weighted": nms.weighted_nms,
    "fused": nms.weighted_boxes_fusion,
}
each_way = pytest.mark.parametrize("way", WAYS)
laws = settings(deadline=None, max_examples=12)
N, SIZE = 24, 33
iou = jax.jit(shapes.iou)


@partial(jax.jit, static_argnames=("way", "size", "score", "kind", "original"))
def compiled(way, *given, **how):
    return WAYS[way](*given, **how)


def run(way, *given, **how):
    """What a way keeps, as NumPy arrays; its numbers, defaults too, are inputs of one program."""
    options = inspect.signature(WAYS[way]).parameters.items()
    defaults = {key: o.default for key, o in options if o.kind == o.KEYWORD_ONLY}
    return jax.device_get(compiled(way, *given, **defaults | {"size": SIZE} | how))


def drawn(seed, count=N, classes=2):
    """Boxes that crowd, distinct scores, labels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 25, (count, 2))], -1).astype(np.float32)
    scores = (rng.permutation(count) + 1).astype(np.float32) / (count + 1)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


def rows(kept, labels=None):
    """What is valid, as NumPy arrays."""
    on = np.asarray(kept.valid)
    found = {name: np.asarray(column)[on] for name, column in kept._asdict().items()}
    return found if labels is None else found | {"labels": labels[found["index"]]}


GOLDEN_WAYS = {
    "nms": partial(nms.nms, threshold=0.5),
    "soft_linear": partial(nms.soft_nms, kind="linear", threshold=0.5, original=True),
    "soft_gaussian": partial(nms.soft_nms, kind="gaussian", sigma=0.5, original=True),
    "nmw": partial(nms.weighted_nms, threshold=0.55),
    "wbf": partial(nms.weighted_boxes_fusion, threshold=0.55),
}


@pytest.mark.parametrize("name", GOLDEN_WAYS)
def test_each_way_is_the_golden_one(name):
    boxes, scores = (GOLDENS[f"sup_{k}"].astype(np.float32) for k in ("boxes", "scores"))
    labels = GOLDENS["sup_labels"].astype(np.int32)
    found = rows(jax.jit(partial(GOLDEN_WAYS[name], size=120))(boxes, scores, labels), labels)
    wanted = {k: GOLDENS[f"sup_{name}_{k}"] for k in ("boxes", "scores", "labels")}
    assert len(found["scores"]) == len(wanted["scores"])
    for label in np.unique(labels):  # the order within a class is that in which boxes were chosen
        mine, true = (
            {key: column[told["labels"] == label] for key, column in told.items() if key != "index"}
            for told in (found, wanted)
        )
        if name == "wbf":  # the golden order of equal scores is that of an unstable sort
            mine, true = map(_ordered, (mine, true))
        for key in ("boxes", "scores"):
            np.testing.assert_allclose(mine[key], true[key], rtol=1e-5, atol=1e-6)


def _ordered(told):
    """Rows by score, those of equal scores by their box."""
    order = np.lexsort((told["boxes"][:, 0], told["scores"].round(5)))
    return {key: column[order] for key, column in told.items()}


@laws
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
def test_hard_is_the_loop(seed, threshold):
    given = drawn(seed)
    kept = rows(run("hard", *given, threshold=threshold))
    np.testing.assert_array_equal(kept["index"], reference.nms(*given, threshold))
    np.testing.assert_array_equal(kept["boxes"], given[0][kept["index"]])


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@laws
@given(seed=st.integers(0, 10**6))
def test_soft_is_the_loop(kind, seed):
    given = drawn(seed)
    how = {"threshold": 0.3, "sigma": 0.4, "least": 0.01}
    kept, (order, values) = rows(run(kind, *given, **how)), reference.soft_nms(*given, kind, **how)
    np.testing.assert_array_equal(kept["index"], order)
    np.testing.assert_allclose(kept["scores"], values, rtol=1e-4)


@pytest.mark.parametrize("way", ["weighted", "fused"])
@laws
@given(seed=st.integers(0, 10**6))
def test_merging_is_the_loop(way, seed):
    given = drawn(seed)
    twin = {"weighted": reference.weighted_nms, "fused": reference.weighted_boxes_fusion}[way]
    kept, expected = rows(run(way, *given, threshold=0.4)), twin(*given, 0.4)
    assert len(expected) == len(kept["scores"])
    np.testing.assert_allclose(kept["scores"], [score for _, score in expected], rtol=1e-5)
    np.testing.assert_allclose(kept["boxes"], [box for box, _ in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", ["mean", "max"])
def test_fused_scores_of_several_models(score):
    given = drawn(4, classes=1)
    kept = rows(run("fused", *given, threshold=0.3, score=score, models=3))
    expected = reference.weighted_boxes_fusion(*given, 0.3, models=3, score=score)
    np.testing.assert_allclose(kept["scores"], [value for _, value in expected], rtol=1e-5)


@each_way
def test_no_size_of_the_output_changes_what_comes_first(way):
    given = drawn(1)
    more, whole, few = (run(way, *given, size=size) for size in (SIZE, N, 5))
    if way == "fused":  # its order is known only when all have joined
        assert len(few.scores) == 5 and set(few.index) <= set(range(N))
    else:
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[:5], whole), few, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[:N], more), whole, rtol=1e-6)
    assert not more.valid[N:].any() and not more.boxes[N:].any() and not more.scores[N:].any()


@each_way
def test_nothing_to_keep_and_equal_boxes(way):
    boxes, _, labels = drawn(2)
    nothing = run(way, boxes, np.zeros(N, np.float32), labels)
    assert not nothing.valid.any() and np.isfinite(nothing.boxes).all()
    same = np.broadcast_to(boxes[:1], (N, 4))
    one = run(way, same, np.full(N, 0.5, np.float32), threshold=0.5)
    np.testing.assert_allclose(one.boxes[0], boxes[0], rtol=1e-6)
    if "gaussian" not in way:
        assert one.valid.sum() == 1


@each_way
def test_labels_keep_classes_apart_as_one_class_after_the_other(way):
    boxes, scores, labels = drawn(6)
    joint = rows(run(way, boxes, scores, labels), labels)
    for label in (0, 1):
        alone = rows(run(way, boxes, np.where(labels == label, scores, 0)))
        mine = joint["labels"] == label
        for key in ("boxes", "scores"):
            np.testing.assert_allclose(joint[key][mine], alone[key], rtol=1e-5, atol=1e-5)


@each_way
def test_vmap_is_one_image_after_the_other_and_jit_is_plain(way):
    batch = [np.stack(column) for column in zip(*map(drawn, (1, 2, 3)), strict=True)]
    one = partial(WAYS[way], size=5)
    together = jax.device_get(jax.jit(jax.vmap(one))(*batch))
    apart = [run(way, *(column[i] for column in batch), size=5) for i in range(3)]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *x: np.stack(x), *apart), rtol=1e-5)
    chex.assert_trees_all_close(one(*(column[0] for column in batch)), apart[0], rtol=1e-5)


@laws
@given(st.integers(0, 10**6))
def test_what_hard_keeps_is_apart_and_covers_the_rest(seed):
    boxes, scores, _ = drawn(seed)
    kept = rows(run("hard", boxes, scores, threshold=0.4))
    overlap = np.asarray(iou(boxes[:, None], boxes[None]))[:, kept["index"]]
    assert (np.diff(kept["scores"]) < 0).all()
    assert (overlap[kept["index"]] - np.eye(len(kept["index"])) <= 0.4).all()
    gone = np.setdiff1d(np.arange(N), kept["index"])
    assert (overlap[gone] > 0.4).any(1).all()
