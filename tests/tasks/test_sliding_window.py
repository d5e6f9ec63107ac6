from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import rng
from jaxdet.ops import windows
from jaxdet.tasks import sliding_window as locate
from jaxdet.training import host_init
from jaxdet.types import StepContext
from tests import tiny
from tests.reference import windows as reference

GRID = windows.grid(windows.parse("c40s4"), 64, 52)  # 7 rows, 4 columns


def drawn(seed):
    """Random outputs [R, C, 15], the targets of a box and a label, and the windows' corners."""
    random = np.random.default_rng(seed)
    raw = random.normal(size=(GRID.rows, GRID.columns, 15)).astype(np.float32) * 2
    low = random.uniform(0, 30, 2)
    box = np.float32([*low, *(low + random.uniform(5, 20, 2))])
    target = encode(box, np.int32(random.integers(10)))
    return raw, np.asarray(target), np.asarray(windows.window_boxes(GRID))


@jax.jit
def encode(box, label):
    return windows.encode_targets(box, label, GRID)


@partial(jax.jit, static_argnums=2)
def loss_terms(raw, target, gate):
    return locate.loss_terms(locate.split_outputs(raw), target, gate=gate)


@partial(jax.jit, static_argnums=1)
def choose(raw, score):
    return locate.select_window(locate.split_outputs(raw), windows.window_boxes(GRID), score=score)


@pytest.mark.parametrize("gate", ["both", "truth"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_the_scalar_loop(seed, gate):
    raw, target, _ = drawn(seed)
    terms = loss_terms(raw, target, gate)
    for name, expected in reference.sliding_window_loss(raw, target, gate).items():
        assert float(terms[name].sum()) == pytest.approx(expected, rel=1e-5), name


def test_the_gate_has_no_gradient():
    raw, target, _ = drawn(0)

    @jax.jit
    @jax.grad
    def slopes(raw):
        terms = loss_terms(raw, target, "both")
        return (terms["classification"] + terms["regression"]).sum()

    slope = np.asarray(slopes(raw))
    np.testing.assert_array_equal(slope[..., 0], 0)
    assert np.abs(slope[..., 1:]).max() > 0


def test_windows_without_the_object_teach_only_detection():
    raw, target, _ = drawn(1)
    empty = np.zeros_like(target)
    terms = jax.device_get(loss_terms(raw, empty, "both"))
    np.testing.assert_array_equal(terms["classification"] + terms["regression"], 0)
    assert (terms["detection"] > 0).all()


@pytest.mark.parametrize("score", ["class", "product"])
@pytest.mark.parametrize("seed", range(3))
def test_the_surest_window_answers(seed, score):
    raw, _, corners = drawn(seed)
    found = choose(raw, score)
    label, box = reference.best_window(raw, corners, product=score == "product")
    assert int(found["label"]) == label
    np.testing.assert_allclose(found["box"], box, rtol=1e-4, atol=1e-4)


def test_an_untrained_window_can_win_by_class_but_not_by_product():
    raw = np.zeros((GRID.rows, GRID.columns, 15), np.float32)
    raw[..., 0] = -20.0  # nothing in sight anywhere ...
    raw[2, 1, 0], raw[2, 1, 1 + 3] = 20.0, 5.0  # ... but here, a 3
    raw[0, 0, 1 + 7] = 9.0  # and a surer 7 where nothing is
    assert int(choose(raw, "class")["label"]) == 7
    assert int(choose(raw, "product")["label"]) == 3


def test_merged_windows_that_agree_give_what_each_says():
    corners = windows.window_boxes(GRID)
    box = jnp.asarray([12.0, 20.0, 30.0, 44.0])
    raw = np.zeros((GRID.rows, GRID.columns, 15), np.float32)
    raw[..., 1 + 4] = 6.0
    raw[..., 11:] = windows.to_window(box[None, None], corners)
    found = choose(raw, "merge")
    assert int(found["label"]) == 4
    np.testing.assert_allclose(found["box"], box, atol=1e-3)


AT = StepContext(False, 0, 0, {"class_weight": 0.5, "box_weight": 3.0})


@cache
def placed():
    """Variables of the tiny task's network, and four rows as it sees them."""
    _, system = tiny.system(rows=4)

    @jax.jit
    def place(batch):
        return system.task.augment(rng.row_keys(jax.random.key(0), batch["id"]), batch, AT)

    batch = place(system.splits["train"].arrays)
    return host_init.initialize(system.task.init, jax.random.key(1), batch), batch


@cache
def compiled(reduction):
    """The loss as a function of variables and a batch."""
    _, system = tiny.system(rows=4, reduction=reduction)
    return jax.jit(lambda variables, batch: system.task.loss(variables, batch, None, AT))


@cache
def both(reduction, real=(1.0, 1.0, 1.0, 1.0)):
    """(share, terms) of the tiny task on four rows."""
    variables, batch = placed()
    share, (_, terms) = compiled(reduction)(variables, batch | {"real": np.float32(real)})
    return float(share), {name: float(value) for name, value in terms.items()}


def test_the_sum_is_weighted_and_its_terms_are_means_over_images():
    share, terms = both("sum")
    whole = terms["detection"] + 0.5 * terms["classification"] + 3 * terms["regression"]
    assert terms["loss"] == pytest.approx(whole, rel=1e-5)
    assert share == pytest.approx(4 * terms["loss"], rel=1e-5)


def test_the_mean_is_over_images_and_windows():
    (total, _), (mean, terms) = both("sum"), both("mean")
    assert mean == pytest.approx(total / (4 * 9), rel=1e-5)  # 3 x 3 windows
    assert terms["loss"] == pytest.approx(total / 4, rel=1e-5)


def test_padding_rows_count_for_nothing():
    share, terms = both("sum", (1.0, 1.0, 0.0, 0.0))
    assert share == pytest.approx(2 * terms["loss"], rel=1e-5)
    assert share < both("sum")[0]


def test_bfloat16_computes_in_half_and_keeps_single_parameters():
    _, system = tiny.system(rows=4, bfloat16=True)
    images = jnp.zeros((1, 56, 56, 1))
    variables = jax.eval_shape(system.task.init, jax.random.key(0), {"image": images})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = jax.jit(system.task.predict).lower(variables, images).as_text()
    assert "bf16" in program


def test_the_report_counts_right_labels_and_good_boxes():
    rows = {"right": np.array([1, 1, 0, 1], bool), "iou": np.array([0.5, 0.4, 0.9, 1.0])}
    expected = {"accuracy": 0.75, "iou": 0.7, "iou50": 0.75, "joint": 0.5, "right_iou": 1.9 / 4}
    assert locate.report(rows) == pytest.approx(expected)
