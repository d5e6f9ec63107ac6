from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdet.models import heads, necks
from jaxdet.models.detector import Detector
from jaxdet.models.heads import DecoupledHead
from jaxdet.models.resnet import BasicBlock, ResNet
from jaxdet.ops import anchors
from jaxdet.training import host_init

SHAPES = ((2, 8, 12, 8), (2, 4, 6, 12), (2, 2, 3, 16))
TINY = partial(ResNet, stages=(1, 1, 1, 1), block=BasicBlock, width=4, classes=0)


PARTS = ("backbone", "neck", "head")


def maps():
    return tuple(normal(*shape, seed=i) for i, shape in enumerate(SHAPES))


def normal(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shaped(module, *args):
    """Outputs of a module, as shapes."""
    return jax.eval_shape(lambda *a: module.init_with_output(jax.random.key(1), *a)[0], *args)


def applied(module, *args):
    """Outputs of a module with its initial variables, and the variables, on the host."""
    variables = host_init.initialize(module.init, jax.random.key(1), *args)
    return jax.device_get(run(module, variables, *args)), variables


@partial(jax.jit, static_argnums=0)
def run(module, variables, *args):
    return module.apply(variables, *args)


@pytest.mark.parametrize(
    "block", [necks.ConvBlock, necks.C3, necks.C2f, partial(necks.C2f, blocks=2)]
)
def test_blocks_keep_the_size_of_the_map_and_set_its_channels(block):
    assert shaped(block(channels=6), maps()[0]).shape == (2, 8, 12, 6)


def test_c3_and_c2f_have_the_convolutions_of_their_figures():
    x = jnp.zeros((1, 4, 4, 10))
    for block, expected in (
        (necks.C3(channels=8, blocks=2), {"deep", "around", "block1", "block2", "out"}),
        (necks.C2f(channels=8, blocks=2), {"in", "block1", "block2", "out"}),
    ):
        params = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
        assert {name.removesuffix("_norm") for name in params} == expected
    width = {"C3": 2 * 4, "C2f": 4 * 4}  # what the last convolution sees
    for name, channels in width.items():
        block = getattr(necks, name)(channels=8, blocks=2)
        params = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
        assert params["out"]["kernel"].shape == (1, 1, channels, 8)


@pytest.mark.parametrize("neck", [necks.FPN, necks.PAN])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_necks_keep_the_size_of_every_map_and_set_its_channels(neck, levels):
    out = shaped(neck(channels=8), maps()[:levels])
    assert [x.shape for x in out] == [(*s[:3], 8) for s in SHAPES[:levels]]


@pytest.mark.parametrize(
    ("neck", "back"), [(necks.FPN, False), (necks.PAN, True)], ids=["fpn", "pan"]
)
def test_information_flow_between_levels(neck, back):
    """Coarse maps reach finer ones; fine ones reach coarser ones only on the way back up."""
    given = maps()
    module = neck(channels=8)
    before, variables = applied(module, given)

    def reaches(i, j):
        changed = tuple(m + 1 if k == i else m for k, m in enumerate(given))
        after = run(module, variables, changed)
        return not np.allclose(before[j], after[j], atol=1e-6)

    assert reaches(2, 0) and reaches(1, 0) and reaches(0, 0)
    assert reaches(0, 2) == back and reaches(0, 1) == back


@pytest.mark.parametrize("sides", [(4, 6), (3, 5), (4, 5)])
def test_upsampling_repeats_the_nearest_pixel(sides):
    x = maps()[2]  # 2 x 3
    out = np.asarray(necks.upsample_nearest(x, sides, "name"))
    for i in range(sides[0]):
        for j in range(sides[1]):
            np.testing.assert_array_equal(out[:, i, j], x[:, i // 2, j // 2])


def test_fpn_equals_its_figure():
    """Laterals, sums and outputs, one by one."""
    given = maps()[:2]
    fpn = necks.FPN(channels=8)
    out, variables = applied(fpn, given)
    params, stats = variables["params"], variables["batch_stats"]

    def lateral(i):
        kernel = params[f"lateral{i}"]["kernel"][0, 0]
        mean, var = stats[f"lateral{i}_norm"]["mean"], stats[f"lateral{i}_norm"]["var"]
        return (given[i - 1] @ kernel - mean) / np.sqrt(var + 1e-5)

    fine = lateral(1) + np.repeat(np.repeat(lateral(2), 2, 1), 2, 2)
    block = necks.ConvBlock(channels=8)
    own = {"params": params["out1"], "batch_stats": stats["out1"]}
    np.testing.assert_allclose(out[0], run(block, own, fine), atol=1e-4)


def test_the_head_starts_at_its_prior_and_predicts_every_cell():
    head = DecoupledHead(classes=5, channels=8)
    raw, variables = applied(head, maps())
    cells = sum(s[1] * s[2] for s in SHAPES)
    chex.assert_shape(raw.classes, (2, cells, 5))
    chex.assert_shape(raw.sides, (2, cells, 4))
    chex.assert_shape(raw.objectness, (2, cells))
    chance = special.expit(np.concatenate([raw.classes.ravel(), raw.objectness.ravel()]))
    np.testing.assert_allclose(chance.mean(), heads.PRIOR, rtol=0.2)
    names = {name.removesuffix("_norm") for name in variables["params"]}
    of_level = {"stem", "class1", "class2", "box1", "box2", "classes", "sides", "objectness"}
    assert names == {f"level{i}_{part}" for i in (1, 2, 3) for part in of_level}


def test_classes_and_boxes_have_separate_branches():
    head = DecoupledHead(classes=5, channels=8, objectness=True)
    raw, variables = applied(head, maps())
    params = jax.tree.map(lambda x: x, variables["params"])
    params["level1_class2"] = jax.tree.map(lambda x: x + 1, params["level1_class2"])
    other = run(head, variables | {"params": params}, maps())
    first = SHAPES[0][1] * SHAPES[0][2]
    assert not np.allclose(raw.classes[:, :first], other.classes[:, :first])
    np.testing.assert_array_equal(raw.classes[:, first:], other.classes[:, first:])
    np.testing.assert_allclose(raw.sides, other.sides, atol=1e-6)
    np.testing.assert_allclose(raw.objectness, other.objectness, atol=1e-6)


def detector(reg_max=1, levels=3, **head):
    return Detector(
        backbone=TINY,
        neck=partial(necks.FPN, channels=8),
        head=partial(DecoupledHead, classes=2, channels=8, objectness=False, **head),
        reg_max=reg_max,
        levels=levels,
    )


@pytest.mark.parametrize("levels", [2, 3])
def test_a_detector_predicts_every_cell(levels):
    image, bins = normal(2, 64, 96, 3), 8
    if levels == 2:
        answers = shaped(detector(1, levels), image)
        assert answers.objectness is answers.distances is None
        assert answers.boxes.shape == (2, 4 * 6 + 2 * 3, 4)
        return
    answers, _ = applied(detector(bins, levels), image)
    shapes = [(64 // s, 96 // s) for s in (8, 16, 32)]
    points, of_cell = anchors.grid_centers(shapes, (8, 16, 32))
    np.testing.assert_array_equal(answers.points, points)
    np.testing.assert_array_equal(answers.strides, of_cell)
    chex.assert_shape(answers.boxes, (2, len(points), 4))
    inside = anchors.boxes_to_ltrb(answers.boxes, points[None])
    assert (inside > 0).all()  # a cell is in its own box
    chex.assert_shape(answers.distances, (2, len(points), 4, bins))
    reach = special.softmax(answers.distances, -1) @ np.arange(bins, dtype=np.float32)
    np.testing.assert_allclose(inside, reach * of_cell[None, :, None], rtol=1e-4)
    assert (inside < (bins - 1) * of_cell[None, :, None]).all()


def test_anchors_of_a_cell_have_their_own_scores_and_boxes():
    image, scales, ratios = normal(1, 64, 64, 3), (2.0, 4.0), (0.5, 1.0, 2.0)
    net = detector(anchors=6).clone(anchor_scales=scales, anchor_ratios=ratios)
    answers, variables = applied(net, image)
    points, strides = anchors.grid_centers([(8, 8), (4, 4), (2, 2)], (8, 16, 32))
    expected = anchors.anchor_boxes(points, strides, scales=scales, ratios=ratios)
    np.testing.assert_array_equal(answers.anchors, expected)
    np.testing.assert_array_equal(answers.points, np.repeat(points, 6, 0))
    np.testing.assert_array_equal(answers.strides, np.repeat(strides, 6))
    chex.assert_shape(answers.classes, (1, 6 * 84, 2))
    near = np.abs(answers.boxes[0] - expected).max(-1) / answers.strides
    assert 0 < np.median(near) < 0.5  # initial boxes are near their anchors

    params = jax.tree.map(lambda x: x, variables["params"])
    bias = params["head"]["level1_sides"]["bias"]  # [6 anchors x 4 offsets]
    params["head"]["level1_sides"]["bias"] = bias + np.log(2) * (np.arange(24) == 4 * 5 + 3)
    moved = run(net, variables | {"params": params}, image)
    ratio = (moved.boxes[0, :, 3] - moved.boxes[0, :, 1]) / (
        answers.boxes[0, :, 3] - answers.boxes[0, :, 1]
    )
    first = np.arange(6 * 84) < 6 * 64
    changed = first & (np.arange(6 * 84) % 6 == 5)
    np.testing.assert_allclose(ratio, np.where(changed, 2, 1), rtol=1e-4)


def test_initial_boxes_have_sides_of_two_strides():
    answers, _ = applied(detector(), np.zeros((1, 64, 64, 3), np.float32))
    sides = (answers.boxes[..., 2:] - answers.boxes[..., :2])[0] / answers.strides[:, None]
    np.testing.assert_allclose(sides, 2.0, rtol=0.05)


def test_outputs_and_parameters_are_float32_in_any_dtype():
    part = {"dtype": jnp.bfloat16}
    parts = {name: partial(getattr(detector(), name), **part) for name in PARTS}
    image = normal(1, 64, 64, 3)
    (answers, variables) = jax.eval_shape(
        lambda image: detector(reg_max=4).clone(**parts).init_with_output(jax.random.key(1), image),
        image,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((answers, variables))} == {jnp.dtype("float32")}
    inner = jax.make_jaxpr(detector().clone(**parts).init)(jax.random.key(1), image)
    assert "bf16[" in str(inner)
