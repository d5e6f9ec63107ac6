from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import rng
from jaxdet.losses import boxes as box_losses
from jaxdet.ops import windows
from jaxdet.tasks import sliding_window
from jaxdet.training import host_init
from jaxdet.types import StepContext
from tests import tiny
from tests.reference import windows as reference

GRID = windows.grid(windows.parse("c40s4"), 64, 52)  # 7 rows, 4 columns
CONTEXT = StepContext(False, 0, 0, {"class_weight": 0.5, "box_weight": 3.0})


def random_outputs(seed):
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


@partial(jax.jit, static_argnums=(2, 3))
def loss_terms(raw, target, mask_by, box_loss="mse"):
    outputs = sliding_window.split_outputs(raw)
    return sliding_window.loss_terms(outputs, target, mask_by=mask_by, box_loss=box_loss)


@partial(jax.jit, static_argnums=1)
def select(raw, selection):
    outputs, corners = sliding_window.split_outputs(raw), windows.window_boxes(GRID)
    return sliding_window.select_window(outputs, corners, selection=selection)


@pytest.mark.parametrize("mask_by", ["both", "truth"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_scalar_reference(seed, mask_by):
    raw, target, _ = random_outputs(seed)
    terms = loss_terms(raw, target, mask_by)
    for name, expected in reference.sliding_window_loss(raw, target, mask_by).items():
        assert float(terms[name].sum()) == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("name", ["smooth_l1", "giou", "diou", "ciou"])
def test_any_box_loss_counts_in_windows_with_the_object(name):
    raw, target, _ = random_outputs(0)
    with_object = np.arange(GRID.rows) % 2 == 0  # every second row of windows
    target = target * with_object[:, None, None]
    found = loss_terms(raw, target, "truth", name)["regression"]
    pairs = zip(
        raw[with_object][..., -4:].reshape(-1, 4),
        target[with_object][..., 2:].reshape(-1, 4),
        strict=True,
    )
    expected = [box_losses.box_loss(name, *pair) for pair in pairs]
    np.testing.assert_allclose(found[with_object].ravel(), expected, rtol=1e-4, atol=1e-6)
    assert not found[~with_object].any()


def test_mask_has_no_gradient():
    raw, target, _ = random_outputs(0)

    @jax.jit
    @jax.grad
    def gradient(raw):
        terms = loss_terms(raw, target, "both")
        return (terms["classification"] + terms["regression"]).sum()

    slope = np.asarray(gradient(raw))
    np.testing.assert_array_equal(slope[..., 0], 0)
    assert np.abs(slope[..., 1:]).max() > 0


def test_windows_without_the_object_train_detection_only():
    raw, target, _ = random_outputs(1)
    empty = np.zeros_like(target)
    terms = jax.device_get(loss_terms(raw, empty, "both"))
    np.testing.assert_array_equal(terms["classification"] + terms["regression"], 0)
    assert (terms["detection"] > 0).all()


@pytest.mark.parametrize("selection", ["class", "product"])
@pytest.mark.parametrize("seed", range(3))
def test_selects_the_most_confident_window(seed, selection):
    raw, _, corners = random_outputs(seed)
    found = select(raw, selection)
    label, box = reference.best_window(raw, corners, product=selection == "product")
    assert int(found["label"]) == label
    np.testing.assert_allclose(found["box"], box, rtol=1e-4, atol=1e-4)


def test_a_window_without_object_can_win_by_class_but_not_by_product():
    raw = np.zeros((GRID.rows, GRID.columns, 15), np.float32)
    raw[..., 0] = -20.0  # nothing detected anywhere ...
    raw[2, 1, 0], raw[2, 1, 1 + 3] = 20.0, 5.0  # ... but here, a 3
    raw[0, 0, 1 + 7] = 9.0  # and a more confident 7 where nothing is
    assert int(select(raw, "class")["label"]) == 7
    assert int(select(raw, "product")["label"]) == 3


def test_merging_windows_that_agree_gives_their_common_prediction():
    corners = windows.window_boxes(GRID)
    box = jnp.asarray([12.0, 20.0, 30.0, 44.0])
    raw = np.zeros((GRID.rows, GRID.columns, 15), np.float32)
    raw[..., 1 + 4] = 6.0
    raw[..., 11:] = windows.to_window(box[None, None], corners)
    found = select(raw, "merge")
    assert int(found["label"]) == 4
    np.testing.assert_allclose(found["box"], box, atol=1e-3)


def test_merging_windows_whose_boxes_are_outside_of_them_weighs_by_confidence_alone():
    raw = np.zeros((GRID.rows, GRID.columns, 15), np.float32)
    raw[..., 0] = -9.0
    raw[2, 1, 0], raw[2, 1, 1 + 4] = 9.0, 6.0
    raw[..., 11:] = [5.0, 5.0, 6.0, 6.0]  # in window units, of which a window has -1 to 1
    found = select(raw, "merge")
    assert int(found["label"]) == 4 and 0.9 < float(found["score"]) < 1
    np.testing.assert_allclose(found["box"], select(raw, "product")["box"], atol=0.1)


@partial(jax.jit, static_argnums=1)
def detect(raw, grid):
    return sliding_window.detect_objects(
        sliding_window.split_outputs(raw),
        windows.window_boxes(grid),
        score_threshold=0.5,
        iou_threshold=0.05,
        max_detections=4,
    )


def test_two_digits_on_a_canvas_are_found_once_each():
    """Each window answers for the digit that it sees best, as a perfect network would."""
    grid = windows.grid(windows.parse("c44s4"), 96, 96)  # 14 x 14 windows of 44 pixels
    truth = {7: [10.0, 14.0, 30.0, 41.0], 3: [58.0, 50.0, 77.0, 80.0]}
    raw = np.full((grid.rows, grid.columns, 15), -9, np.float32)
    seen = np.zeros((grid.rows, grid.columns))
    for label, box in truth.items():
        target = np.asarray(windows.encode_targets(jnp.float32(box), jnp.int32(label), grid))
        visible = np.asarray(sliding_window.visible_fraction(target[..., 2:])) * target[..., 0]
        own = visible > seen
        seen = np.maximum(seen, visible)
        raw[own, 0], raw[own, 1:11], raw[own, 1 + label] = 9, -9, 9
        raw[own, 11:] = target[own, 2:]
    assert 2 < (seen == 1).sum() < grid.rows * grid.columns
    found = jax.device_get(detect(raw, grid))
    assert found["valid"].tolist() == [True, True, False, False]
    assert {*found["labels"][:2]} == {*truth}
    for label, box in zip(found["labels"][:2], found["boxes"][:2], strict=True):
        np.testing.assert_allclose(box, truth[int(label)], atol=1e-3)
    assert (found["scores"][:2] > 0.99).all() and not found["labels"][2:].any()


def test_the_best_detection_answers_for_the_one_digit_of_a_sample():
    task = sliding_window.MultipleObjectsTask(net=None, place=None)
    predictions = {
        "labels": np.array([[4, 1], [4, 1], [4, 0]]),
        "boxes": np.float32([[[0, 0, 2, 2], [5, 5, 9, 9]]] * 3),
        "valid": np.array([[True, True], [True, False], [False, False]]),
    }
    batch = {"label": np.array([4, 1, 4]), "boxes": np.float32([[[0, 0, 2, 4]]] * 3)}
    measured = task.measure(predictions, batch)
    assert measured["right"].tolist() == [True, False, False]
    np.testing.assert_allclose(measured["iou"], [0.5, 0.5, 0])


@cache
def variables_and_batch():
    """Variables of the tiny task's network, and four prepared rows."""
    experiment = tiny.experiment(rows=4)

    @jax.jit
    def prepare(batch):
        keys = rng.row_keys(jax.random.key(0), batch["id"])
        return experiment.task.augment(keys, batch, CONTEXT)

    batch = prepare(experiment.splits["train"].arrays)
    return host_init.initialize(experiment.task.init, jax.random.key(1), batch), batch


@cache
def compiled_loss(reduction):
    """The loss as a function of variables and a batch."""
    task = tiny.experiment(rows=4, reduction=reduction).task
    return jax.jit(lambda variables, batch: task.loss(variables, batch, None, CONTEXT))


@cache
def loss_of(reduction, real=(1.0, 1.0, 1.0, 1.0)):
    """(loss, terms) of the tiny task on four rows."""
    variables, batch = variables_and_batch()
    loss, (_, terms) = compiled_loss(reduction)(variables, batch | {"real": np.float32(real)})
    return float(loss), {name: float(value) for name, value in terms.items()}


def test_sum_is_weighted_and_terms_are_means_over_images():
    loss, terms = loss_of("sum")
    weighted = terms["detection"] + 0.5 * terms["classification"] + 3 * terms["regression"]
    assert terms["loss"] == pytest.approx(weighted, rel=1e-5)
    assert loss == pytest.approx(4 * terms["loss"], rel=1e-5)


def test_mean_is_over_images_and_windows():
    (total, _), (mean, terms) = loss_of("sum"), loss_of("mean")
    assert mean == pytest.approx(total / (4 * 9), rel=1e-5)  # 3 x 3 windows
    assert terms["loss"] == pytest.approx(total / 4, rel=1e-5)


def test_padded_rows_are_not_counted():
    loss, terms = loss_of("sum", (1.0, 1.0, 0.0, 0.0))
    assert loss == pytest.approx(2 * terms["loss"], rel=1e-5)
    assert loss < loss_of("sum")[0]


def test_bfloat16_computes_in_half_precision_and_keeps_float32_parameters():
    task = tiny.experiment(rows=4, bfloat16=True).task
    images = jnp.zeros((1, 56, 56, 1))
    variables = jax.eval_shape(task.init, jax.random.key(0), {"image": images})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = jax.jit(task.predict).lower(variables, images).as_text()
    assert "bf16" in program


def test_report_counts_correct_labels_and_boxes():
    rows = {"right": np.array([1, 1, 0, 1], bool), "iou": np.array([0.5, 0.4, 0.9, 1.0])}
    expected = {"accuracy": 0.75, "iou": 0.7, "iou50": 0.75, "joint": 0.5, "right_iou": 1.9 / 4}
    task = sliding_window.SlidingWindowTask(net=None, place=None)
    assert task.report(rows) == pytest.approx(expected)
