import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special

from benchmarks.lib import reference
from jaxdet import rng
from jaxdet.data.normalize import Normalization
from jaxdet.losses import boxes as box_losses
from jaxdet.metrics import classification as classification_metrics
from jaxdet.models.localizer import Localizer
from jaxdet.models.plain import ConvStack
from jaxdet.ops import augment
from jaxdet.tasks import localize
from jaxdet.training import parallel
from jaxdet.types import StepContext
from tests.models.helpers import outputs, random_like
from tests.reference import localization as reference_localization

CLASSES = ("cup", "hat", "owl")
HEIGHT, WIDTH = 16, 24
SIDES = np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])
HPARAMS = {"class_weight": 0.7, "box_weight": 2.5, "dropout_scale": 0.0}
TRAIN, EVALUATE = (StepContext(train, 0, 0, HPARAMS) for train in (True, False))
BOX_LOSSES = ("mse", "smooth_l1", "giou", "diou", "ciou")


class ConstantNet(nn.Module):
    """A network that returns its variables."""

    axis_name: str | None = None

    def __call__(self, x, train=False, dropout_scale=1.0):
        """(logits [B, 3], box [B, 4])."""
        params = self.variables["params"]
        return params["logits"], params["box"]


Tiny = partial(
    Localizer,
    features=partial(ConvStack, layout="6 M4 8"),
    classes=3,
    hidden=(8,),
    rates=(0.5,),
    side=1,
)


def make_task(net=None, transform=lambda key, image, box: (image, box), **fields):
    return localize.LocalizationTask(net or ConstantNet(), CLASSES, transform, **fields)


def random_variables(count=6, seed=0):
    """Random variables of `ConstantNet`: logits, and boxes as fractions of the image."""
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(size=(2, count, 2)), axis=0)
    logits = 2 * random.normal(size=(count, 3))
    return {"params": {"logits": np.float32(logits), "box": np.float32(np.hstack([low, high]))}}


def random_batch(count=6, seed=1, real=None):
    """A batch of images with values in [0, 1], with one box each in pixels."""
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(size=(2, count, 2)), axis=0)
    return {
        "image": random.uniform(size=(count, HEIGHT, WIDTH, 3)).astype(np.float32),
        "label": random.integers(3, size=count).astype(np.int32),
        "boxes": np.float32(np.hstack([low, high]) * SIDES)[:, None],
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def loss_and_gradient(variables, batch, context=TRAIN, **fields):
    """((loss, terms), gradient of the loss with respect to the parameters), compiled."""
    options = tuple(sorted(fields.items()))
    return compiled_loss(variables["params"], batch, context.hparams, context.train, options)


@partial(jax.jit, static_argnums=(3, 4))
def compiled_loss(params, batch, hparams, train, options):
    task, context = make_task(**dict(options)), StepContext(train, 0, 0, hparams)

    def loss_of(params):
        loss, (_, terms) = task.loss({"params": params}, batch, jax.random.key(0), context)
        return loss, terms

    return jax.value_and_grad(loss_of, has_aux=True)(params)


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_scalar_reference(name, smoothing):
    variables, batch = random_variables(), random_batch()
    (loss, terms), gradient = loss_and_gradient(
        variables, batch, box_loss=name, label_smoothing=smoothing
    )
    params = variables["params"]
    rows = zip(
        *(params["logits"], batch["label"], params["box"], batch["boxes"][:, 0] / SIDES),
        strict=True,
    )
    each = [reference_localization.localization_losses(*row, name, smoothing) for row in rows]
    classification, regression = np.mean(each, axis=0)
    right = np.mean(
        [max(range(3), key=row.__getitem__) for row in params["logits"]] == batch["label"]
    )
    assert 0 < right < 1
    expected = {
        "accuracy": right,
        "classification": classification,
        "regression": regression,
        "loss": 0.7 * classification + 2.5 * regression,
    }
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, 1e-5)
    assert float(loss) == pytest.approx(expected["loss"], 1e-5)
    chex.assert_tree_all_finite(gradient)
    assert all((abs(leaf) > 0).any(-1).all() for leaf in jax.tree.leaves(gradient))


def test_class_weights_are_weights_of_both_losses_in_training():
    variables, batch = random_variables(), random_batch()
    rows = zip(
        *(variables["params"]["logits"], batch["label"], variables["params"]["box"]),
        *(batch["boxes"][:, 0] / SIDES,),
        strict=True,
    )
    each = [reference_localization.localization_losses(*row, "mse", 0.0) for row in rows]
    weights = np.array([1.0, 4.0, 0.5])[batch["label"]]
    for context, own in ((TRAIN, weights), (EVALUATE, np.ones(6))):
        (_, terms), _ = loss_and_gradient(variables, batch, context, class_weights=(1.0, 4.0, 0.5))
        found = [float(terms[name]) for name in ("classification", "regression")]
        assert found == pytest.approx(np.average(each, 0, own).tolist(), 1e-5)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_loss_of_equal_boxes_is_zero(name):
    boxes = random_variables()["params"]["box"]
    losses = jax.jit(box_losses.box_loss, static_argnums=0)(name, boxes, boxes)
    np.testing.assert_allclose(losses, 0, atol=1e-4)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_gradients_at_empty_boxes_are_finite(name):
    empty = jnp.array([[0.0, 0, 0, 0], [0.5, 0.2, 0.5, 0.9], [0.8, 0.8, 0.2, 0.2], [1, 1, 1, 1]])

    @jax.jit
    @jax.value_and_grad
    def total(predicted, true):
        return box_losses.box_loss(name, predicted, true).sum()

    for true in (empty, jnp.zeros((4, 4)), jnp.asarray(random_variables(4)["params"]["box"])):
        chex.assert_tree_all_finite(total(empty, true))


def test_labels_are_smoothed_in_training_only():
    (_, smoothed), _ = loss_and_gradient(
        random_variables(), random_batch(), TRAIN, label_smoothing=0.2
    )
    (_, evaluated), _ = loss_and_gradient(
        random_variables(), random_batch(), EVALUATE, label_smoothing=0.2
    )
    (_, unsmoothed), _ = loss_and_gradient(random_variables(), random_batch(), TRAIN)
    chex.assert_trees_all_close(evaluated, unsmoothed)
    assert smoothed["classification"] > evaluated["classification"]


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_padded_rows_have_no_effect(name):
    variables, batch = random_variables(), random_batch(real=[1, 0, 1, 1, 0, 0])
    whole, gradient = jax.device_get(loss_and_gradient(variables, batch, box_loss=name))
    some = np.array([0, 2, 3])
    twice = np.tile(some, 2)  # a shape that is compiled already; terms are means
    kept = jax.tree.map(lambda leaf: leaf[twice], (variables, batch))
    packed, packed_gradient = jax.device_get(loss_and_gradient(*kept, box_loss=name))
    assert kept[1]["real"].all()
    chex.assert_trees_all_close(whole, packed, rtol=1e-5)
    packed_gradient = jax.tree.map(lambda leaf: leaf[:3] + leaf[3:], packed_gradient)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[some], gradient), packed_gradient, rtol=1e-5
    )
    for leaf in gradient.values():
        np.testing.assert_array_equal(leaf[np.array([1, 4, 5])], 0)


def test_loss_of_a_padded_batch_is_zero():
    (loss, terms), gradient = loss_and_gradient(
        random_variables(), random_batch(real=np.zeros(6)), box_loss="ciou"
    )
    chex.assert_trees_all_equal(jax.tree.map(float, terms), dict.fromkeys(terms, 0.0))
    assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_terms_are_means_over_images():
    variables, batch = random_variables(), random_batch()
    once, _ = loss_and_gradient(variables, batch)
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), (variables, batch))
    chex.assert_trees_all_close(loss_and_gradient(*twice)[0], once, rtol=1e-5)


def test_weights_scale_their_own_terms_only():
    def with_weights(**hparams):
        context = TRAIN._replace(hparams={**HPARAMS, **hparams})
        (loss, terms), gradient = loss_and_gradient(random_variables(), random_batch(), context)
        assert float(loss) == pytest.approx(float(terms.pop("loss")))
        return float(loss), terms, gradient

    neither, terms, gradient = with_weights(class_weight=0.0, box_weight=0.0)
    assert neither == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))
    for hparams, name, trained in (
        ({"class_weight": 3.0, "box_weight": 0.0}, "classification", "logits"),
        ({"class_weight": 0.0, "box_weight": 3.0}, "regression", "box"),
    ):
        loss, same, gradient = with_weights(**hparams)
        chex.assert_trees_all_equal(terms, same)
        assert loss == pytest.approx(3 * float(terms[name]))
        assert {leaf for leaf, gradient in gradient.items() if gradient.any()} == {trained}


@pytest.fixture(scope="module")
def net():
    """(tiny localizer with dropout and batch norm, random variables)."""
    return Tiny(), random_like(outputs(Tiny(), random_batch()["image"])[1])


def test_dropout_factor_and_key_reach_the_network(net):
    network, variables = net
    task, batch = make_task(network), random_batch()

    @partial(jax.jit, static_argnums=0)
    def entropy(train, factor, seed):
        context = StepContext(train, 0, 0, {**HPARAMS, "dropout_scale": factor})
        _, (_, terms) = task.loss(variables, batch, jax.random.key(seed), context)
        return terms["classification"], terms["regression"]

    off, one, other = entropy(True, 0.0, 1), entropy(True, 1.0, 1), entropy(True, 1.0, 2)
    assert entropy(True, 0.0, 2) == off
    assert len({float(each[0]) for each in (off, one, other)}) == 3
    assert one[1] == other[1] == off[1]  # the box has no dropout
    assert entropy(False, 1.0, 1) == entropy(False, 0.0, 2)


def test_batch_statistics_change_in_training_only(net):
    network, variables = net
    task = make_task(network)

    def after(context):
        return jax.jit(
            lambda: task.loss(variables, random_batch(), jax.random.key(0), context)[1][0]
        )()

    chex.assert_trees_all_equal(after(EVALUATE), variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), after(TRAIN), variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_four_devices_give_loss_and_gradient_of_one(net):
    network, variables = net
    task = make_task(network, box_loss="ciou", label_smoothing=0.1)
    batch = random_batch(8, real=[1, 1, 1, 0, 1, 0, 0, 0])  # the last device has padding only

    def step(variables, batch, axis):
        def loss_of(params):
            context = TRAIN._replace(axis=axis)
            given = {**variables, "params": params}
            return task.loss(given, batch, jax.random.key(0), context)

        (loss, (stats, terms)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            variables["params"]
        )
        return *parallel.psum((loss, terms, gradient), axis), stats

    one, four = (
        parallel.compile_step(step, parallel.local_devices(n), replicated=1)(variables, batch)
        for n in (1, 4)
    )
    chex.assert_trees_all_close(one, jax.device_get(four), rtol=1e-4, atol=1e-6)
    assert float(one[0]) == pytest.approx(float(one[1]["loss"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(one[2]))
    chex.assert_tree_all_finite(one)


def test_predictions_are_labels_scores_and_boxes_in_pixels():
    params = {
        "logits": np.float32([[0, 2, 1], [3, 0, 0]]),
        "box": np.float32([[0.25, 0.5, 0.75, 1], [0, 0, 1, 0.125]]),
    }
    found = jax.jit(make_task().predict)({"params": params}, random_batch(2)["image"])
    np.testing.assert_array_equal(found["label"], [1, 0])
    np.testing.assert_array_equal(found["box"], [[6, 8, 18, 16], [0, 0, 24, 2]])
    scores = np.exp([2, 3]) / [np.exp([0, 2, 1]).sum(), np.exp([3, 0, 0]).sum()]
    np.testing.assert_allclose(found["score"], scores, rtol=1e-6)


def test_predictions_are_those_of_the_network_on_normalized_images(net):
    network, variables = net
    images = random_batch()["image"]
    normalization = Normalization((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    found = jax.jit(make_task(network, normalization=normalization).predict)(variables, images)
    normalized = (images - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.25, 2.0])
    logits, box = jax.device_get(jax.jit(network.apply)(variables, normalized))
    np.testing.assert_allclose(found["box"], box * SIDES[None], rtol=1e-4)
    np.testing.assert_allclose(found["score"], special.softmax(logits, -1).max(-1), rtol=1e-4)
    np.testing.assert_array_equal(found["label"], logits.argmax(-1))


@jax.jit
def predict_and_measure(variables, batch):
    """(predictions, measured rows) of a batch."""
    task = make_task()
    predictions = task.predict(variables, batch["image"])
    return predictions, task.measure(predictions, batch)


def test_measures_equal_reference_per_image():
    batch = random_batch()
    predictions, found = jax.device_get(predict_and_measure(random_variables(), batch))
    np.testing.assert_array_equal(found["label"], batch["label"])
    np.testing.assert_array_equal(found["predicted"], predictions["label"])
    for i, (box, true) in enumerate(zip(predictions["box"], batch["boxes"][:, 0], strict=True)):
        assert float(found["iou"][i]) == pytest.approx(
            reference.iou(np.asarray(box), true), rel=1e-5
        )
        corners = (random_variables()["params"]["box"][i] - true / SIDES) ** 2
        assert float(found["distance"][i]) == pytest.approx(corners.sum() ** 0.5, rel=1e-4)


def test_a_correct_prediction_has_perfect_scores():
    batch = random_batch()
    params = {"logits": 9 * np.eye(3, dtype=np.float32)[batch["label"]]}
    params["box"] = batch["boxes"][:, 0] / SIDES
    report = make_task().report(jax.device_get(predict_and_measure({"params": params}, batch)[1]))
    perfect = {"count": 6, "correct": 6, "accuracy": 1, "iou50": 1, "iou70": 1}
    assert {name: report[name] for name in perfect} == perfect
    assert report["iou"] == pytest.approx(1) and report["distance"] == pytest.approx(0, abs=1e-6)


def test_evaluation_scales_images_to_0_1():
    batch = random_batch() | {
        "image": np.arange(6 * HEIGHT * WIDTH * 3).reshape(6, HEIGHT, WIDTH, 3) % 256
    }
    batch["image"] = batch["image"].astype(np.uint8)
    found = make_task(transform=None).augment(None, batch, EVALUATE)
    np.testing.assert_allclose(found["image"] * 255, batch["image"], rtol=1e-6)
    assert found["image"].dtype == jnp.float32
    chex.assert_trees_all_equal({**found, "image": 0}, {**batch, "image": 0})


def standard(key, image, box):
    sample = augment.standard(key, augment.Sample(image, box[None]))
    return sample.image, sample.boxes[0]


def test_training_augments_each_image_and_box_with_its_own_key():
    batch = random_batch()
    pixels = {**batch, "image": np.uint8(255 * batch["image"])}
    keys = rng.row_keys(jax.random.key(0), jnp.arange(6))
    found = jax.jit(partial(make_task(transform=standard).augment, context=TRAIN))(keys, pixels)
    chex.assert_shape([found["image"], found["boxes"]], [(6, HEIGHT, WIDTH, 3), (6, 1, 4)])
    transform = jax.jit(standard)
    for i in range(6):
        image, box = transform(keys[i], pixels["image"][i] / np.float32(255), batch["boxes"][i, 0])
        np.testing.assert_allclose(found["image"][i], image, atol=1e-5)
        np.testing.assert_allclose(found["boxes"][i, 0], box, atol=1e-4)
    for name in ("label", "real"):
        np.testing.assert_array_equal(found[name], batch[name])


def random_rows(count, seed=0, labels=3):
    """Random rows as `measure` returns them, with the first `labels` labels."""
    random = np.random.default_rng(seed)
    return {
        "label": random.integers(labels, size=count).astype(np.int32),
        "predicted": random.integers(3, size=count).astype(np.int32),
        "iou": random.uniform(size=count).astype(np.float32),
        "distance": random.uniform(size=count).astype(np.float32),
    }


@pytest.mark.parametrize("count, labels", [(40, 3), (41, 3), (1, 1), (12, 2)])
def test_scores_equal_scalar_reference(count, labels):
    rows = random_rows(count, labels=labels)
    images = [{name: rows[name][i] for name in rows} for i in range(count)]
    found = classification_metrics.localization_scores(rows, CLASSES)
    per_label, confusion = found.pop("labels"), found.pop("confusion")
    assert found == pytest.approx(reference_localization.localization_metrics(images), rel=1e-6)
    assert list(per_label) == list(CLASSES)
    for i, name in enumerate(CLASSES):
        own = [image for image in images if image["label"] == i]
        expected = (
            reference_localization.localization_metrics(own) if own else {"count": 0, "correct": 0}
        )
        assert per_label[name] == pytest.approx(expected, rel=1e-6)
        counts = [sum(image["predicted"] == j for image in own) for j in range(3)]
        assert confusion[i] == counts


def test_a_label_without_images_has_no_scores_but_may_be_predicted():
    rows = {**random_rows(4, labels=2), "predicted": np.full(4, 2)}
    report = classification_metrics.localization_scores(rows, CLASSES)
    assert report["labels"]["owl"] == {"count": 0, "correct": 0}
    assert report["confusion"][2] == [0, 0, 0]
    assert sum(row[2] for row in report["confusion"]) == 4
    assert report["accuracy"] == 0


def test_iou50_and_iou70_are_fractions_above_the_threshold():
    rows = {**random_rows(4), "iou": np.float32([0.5, 0.51, 0.75, 0.2])}
    report = classification_metrics.localization_scores(rows, CLASSES)
    assert (report["iou50"], report["iou70"]) == (0.5, 0.25)
    assert report["iou_median"] == pytest.approx(0.505)


def test_scores_are_json_serializable():
    report = classification_metrics.localization_scores(random_rows(9), CLASSES)
    assert json.loads(json.dumps(report)) == report
