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
from tests.models.test_resnet import outputs
from tests.models.test_sliding import fill
from tests.reference import localization as reference_localization

CLASSES = ("cup", "hat", "owl")
HEIGHT, WIDTH = 16, 24
SIDES = np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])
HYPER = {"class_weight": 0.7, "box_weight": 2.5, "dropout": 0.0}
TRAIN, EVALUATE = (StepContext(train, 0, 0, HYPER) for train in (True, False))
KINDS = ("mse", "smooth_l1", "giou", "diou", "ciou")


class Told(nn.Module):
    """A network whose variables are what it answers."""

    axis_name: str | None = None

    def __call__(self, x, train=False, drop=1.0):
        """(logits [B, 3], box [B, 4])."""
        told = self.variables["params"]
        return told["logits"], told["box"]


Tiny = partial(
    Localizer,
    features=partial(ConvStack, layout="6 M4 8"),
    classes=3,
    hidden=(8,),
    rates=(0.5,),
    side=1,
)


def labeller(net=None, change=lambda key, image, box: (image, box), **fields):
    return localize.LocalizationTask(net or Told(), CLASSES, change, **fields)


def answers(count=6, seed=0):
    """Random variables of `Told`: logits, and boxes in shares of the photo."""
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(size=(2, count, 2)), axis=0)
    logits = 2 * random.normal(size=(count, 3))
    return {"params": {"logits": np.float32(logits), "box": np.float32(np.hstack([low, high]))}}


def drawn(count=6, seed=1, real=None):
    """A batch of photos as levels in [0, 1], with a box each in pixels."""
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(size=(2, count, 2)), axis=0)
    return {
        "image": random.uniform(size=(count, HEIGHT, WIDTH, 3)).astype(np.float32),
        "label": random.integers(3, size=count).astype(np.int32),
        "boxes": np.float32(np.hstack([low, high]) * SIDES)[:, None],
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def judged(variables, batch, at=TRAIN, box_loss="mse", smoothing=0.0):
    """((share, terms), gradient of the share by the parameters), compiled."""
    return judging(variables["params"], batch, context.hparams, context.train, box_loss, smoothing)


@partial(jax.jit, static_argnums=(3, 4, 5))
def judging(params, batch, hparams, train, box_loss, smoothing):
    task = labeller(box_loss=box_loss, smoothing=smoothing).task()

    def share(params):
        context = StepContext(train, 0, 0, hparams)
        loss, (_, terms) = task.loss({"params": params}, batch, jax.random.key(0), context)
        return loss, terms

    return jax.value_and_grad(share, has_aux=True)(params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_scalar_loop(kind, smoothing):
    variables, batch = answers(), drawn()
    (share, terms), slopes = judged(variables, batch, box_loss=kind, smoothing=smoothing)
    told = variables["params"]
    rows = zip(
        *(told["logits"], batch["label"], told["box"], batch["boxes"][:, 0] / SIDES), strict=True
    )
    each = [reference_localization.localization_losses(*row, kind, smoothing) for row in rows]
    classification, regression = np.mean(each, axis=0)
    right = np.mean(
        [max(range(3), key=row.__getitem__) for row in told["logits"]] == batch["label"]
    )
    assert 0 < right < 1
    expected = {
        "accuracy": right,
        "classification": classification,
        "regression": regression,
        "loss": 0.7 * classification + 2.5 * regression,
    }
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, 1e-5)
    assert float(share) == pytest.approx(expected["loss"], 1e-5)
    chex.assert_tree_all_finite(slopes)
    assert all((abs(leaf) > 0).any(-1).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_lose_nothing(kind):
    boxes = answers()["params"]["box"]
    losses = jax.jit(box_losses.box_loss, static_argnums=0)(kind, boxes, boxes)
    np.testing.assert_allclose(losses, 0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_empty_boxes_are_finite(kind):
    empty = jnp.array([[0.0, 0, 0, 0], [0.5, 0.2, 0.5, 0.9], [0.8, 0.8, 0.2, 0.2], [1, 1, 1, 1]])

    @jax.jit
    @jax.value_and_grad
    def total(predicted, true):
        return box_losses.box_loss(kind, predicted, true).sum()

    for true in (empty, jnp.zeros((4, 4)), jnp.asarray(answers(4)["params"]["box"])):
        chex.assert_tree_all_finite(total(empty, true))


def test_labels_are_smoothed_only_in_training():
    (_, smooth), _ = judged(answers(), drawn(), TRAIN, smoothing=0.2)
    (_, sharp), _ = judged(answers(), drawn(), EVALUATE, smoothing=0.2)
    (_, never), _ = judged(answers(), drawn(), TRAIN)
    chex.assert_trees_all_close(sharp, never)
    assert smooth["classification"] > sharp["classification"]


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_change_nothing(kind):
    variables, batch = answers(), drawn(real=[1, 0, 1, 1, 0, 0])
    whole, slopes = jax.device_get(judged(variables, batch, box_loss=kind))
    some = np.array([0, 2, 3])
    twice = np.tile(some, 2)  # of a shape that is compiled already; terms are means
    kept = jax.tree.map(lambda leaf: leaf[twice], (variables, batch))
    alone, less = jax.device_get(judged(*kept, box_loss=kind))
    assert kept[1]["real"].all()
    chex.assert_trees_all_close(whole, alone, rtol=1e-5)
    less = jax.tree.map(lambda leaf: leaf[:3] + leaf[3:], less)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[some], slopes), less, rtol=1e-5)
    for leaf in slopes.values():
        np.testing.assert_array_equal(leaf[np.array([1, 4, 5])], 0)


def test_a_batch_of_padding_has_no_loss():
    (share, terms), slopes = judged(answers(), drawn(real=np.zeros(6)), box_loss="ciou")
    chex.assert_trees_all_equal(jax.tree.map(float, terms), dict.fromkeys(terms, 0.0))
    assert share == 0 and not any(leaf.any() for leaf in jax.tree.leaves(slopes))


def test_terms_are_means():
    variables, batch = answers(), drawn()
    once, _ = judged(variables, batch)
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), (variables, batch))
    chex.assert_trees_all_close(judged(*twice)[0], once, rtol=1e-5)


def test_weights_act_on_their_terms_and_on_nothing_else():
    def under(**hparams):
        context = TRAIN._replace(hparams={**HYPER, **hparams})
        (share, terms), slopes = judged(answers(), drawn(), context)
        assert float(share) == pytest.approx(float(terms.pop("loss")))
        return float(share), terms, slopes

    neither, terms, slopes = under(class_weight=0.0, box_weight=0.0)
    assert neither == 0 and not any(leaf.any() for leaf in jax.tree.leaves(slopes))
    for hparams, name, learns in (
        ({"class_weight": 3.0, "box_weight": 0.0}, "classification", "logits"),
        ({"class_weight": 0.0, "box_weight": 3.0}, "regression", "box"),
    ):
        share, same, slopes = under(**hparams)
        chex.assert_trees_all_equal(terms, same)
        assert share == pytest.approx(3 * float(terms[name]))
        assert {leaf for leaf, slope in slopes.items() if slope.any()} == {learns}


@pytest.fixture(scope="module")
def net():
    """A tiny localizer with dropout and batch norm, and random variables of it."""
    return Tiny(), fill(outputs(Tiny(), drawn()["image"])[1])


def test_the_dropout_factor_and_the_key_reach_the_network(net):
    tiny, variables = net
    task, batch = labeller(tiny).task(), drawn()

    @partial(jax.jit, static_argnums=0)
    def entropy(train, factor, seed):
        context = StepContext(train, 0, 0, {**HYPER, "dropout": factor})
        _, (_, terms) = task.loss(variables, batch, jax.random.key(seed), context)
        return terms["classification"], terms["regression"]

    still, one, other = entropy(True, 0.0, 1), entropy(True, 1.0, 1), entropy(True, 1.0, 2)
    assert entropy(True, 0.0, 2) == still
    assert len({float(each[0]) for each in (still, one, other)}) == 3
    assert one[1] == other[1] == still[1]  # the box has no dropout
    assert entropy(False, 1.0, 1) == entropy(False, 0.0, 2)


def test_statistics_move_in_training_and_stay_in_evaluation(net):
    tiny, variables = net
    task = labeller(tiny).task()

    def after(context):
        return jax.jit(lambda: task.loss(variables, drawn(), jax.random.key(0), context)[1][0])()

    chex.assert_trees_all_equal(after(EVALUATE), variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), after(TRAIN), variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_four_devices_give_the_loss_and_gradient_of_one(net):
    tiny, variables = net
    task = labeller(tiny, box_loss="ciou", smoothing=0.1).task()
    batch = drawn(8, real=[1, 1, 1, 0, 1, 0, 0, 0])  # the last device has padding only

    def step(variables, batch, axis):
        def share(params):
            context = TRAIN._replace(axis=axis)
            given = {**variables, "params": params}
            return task.loss(given, batch, jax.random.key(0), context)

        (loss, (stats, terms)), slopes = jax.value_and_grad(share, has_aux=True)(
            variables["params"]
        )
        return *parallel.psum((loss, terms, slopes), axis), stats

    one, four = (
        parallel.compile_step(step, parallel.devices(n), whole=1)(variables, batch) for n in (1, 4)
    )
    chex.assert_trees_all_close(one, jax.device_get(four), rtol=1e-4, atol=1e-6)
    assert float(one[0]) == pytest.approx(float(one[1]["loss"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(one[2]))
    chex.assert_tree_all_finite(one)


def test_predictions_are_labels_scores_and_boxes_in_pixels():
    told = {
        "logits": np.float32([[0, 2, 1], [3, 0, 0]]),
        "box": np.float32([[0.25, 0.5, 0.75, 1], [0, 0, 1, 0.125]]),
    }
    found = jax.jit(labeller().task().predict)({"params": told}, drawn(2)["image"])
    np.testing.assert_array_equal(found["label"], [1, 0])
    np.testing.assert_array_equal(found["box"], [[6, 8, 18, 16], [0, 0, 24, 2]])
    scores = np.exp([2, 3]) / [np.exp([0, 2, 1]).sum(), np.exp([3, 0, 0]).sum()]
    np.testing.assert_allclose(found["score"], scores, rtol=1e-6)


def test_predictions_are_those_of_the_network_for_normal_levels(net):
    tiny, variables = net
    images = drawn()["image"]
    levels = Normalization((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    found = jax.jit(labeller(tiny, levels=levels).task().predict)(variables, images)
    normal = (images - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.25, 2.0])
    logits, box = jax.device_get(jax.jit(tiny.apply)(variables, normal))
    np.testing.assert_allclose(found["box"], box * SIDES[None], rtol=1e-4)
    np.testing.assert_allclose(found["score"], special.softmax(logits, -1).max(-1), rtol=1e-4)
    np.testing.assert_array_equal(found["label"], logits.argmax(-1))


@jax.jit
def judgement(variables, batch):
    """What is predicted for a batch, and its measures."""
    task = labeller().task()
    predictions = task.predict(variables, batch["image"])
    return predictions, task.measure(predictions, batch)


def test_measures_are_those_of_each_photo():
    batch = drawn()
    predictions, found = jax.device_get(judgement(answers(), batch))
    np.testing.assert_array_equal(found["label"], batch["label"])
    np.testing.assert_array_equal(found["predicted"], predictions["label"])
    for i, (box, true) in enumerate(zip(predictions["box"], batch["boxes"][:, 0], strict=True)):
        assert float(found["iou"][i]) == pytest.approx(
            reference.iou(np.asarray(box), true), rel=1e-5
        )
        corners = (answers()["params"]["box"][i] - true / SIDES) ** 2
        assert float(found["distance"][i]) == pytest.approx(corners.sum() ** 0.5, rel=1e-4)


def test_a_right_answer_has_the_best_measures():
    batch = drawn()
    told = {"logits": 9 * np.eye(3, dtype=np.float32)[batch["label"]]}
    told["box"] = batch["boxes"][:, 0] / SIDES
    report = labeller().task().report(jax.device_get(judgement({"params": told}, batch)[1]))
    best = {"count": 6, "correct": 6, "accuracy": 1, "iou50": 1, "iou70": 1}
    assert {name: report[name] for name in best} == best
    assert report["iou"] == pytest.approx(1) and report["distance"] == pytest.approx(0, abs=1e-6)


def test_evaluation_sees_the_photos_as_levels():
    batch = drawn() | {
        "image": np.arange(6 * HEIGHT * WIDTH * 3).reshape(6, HEIGHT, WIDTH, 3) % 256
    }
    batch["image"] = batch["image"].astype(np.uint8)
    refuse = partial(labeller, change=None)  # not called
    found = refuse().task().augment(None, batch, EVALUATE)
    np.testing.assert_allclose(found["image"] * 255, batch["image"], rtol=1e-6)
    assert found["image"].dtype == jnp.float32
    chex.assert_trees_all_equal({**found, "image": 0}, {**batch, "image": 0})


def augmented(key, image, box):
    sample = augment.standard(key, augment.Sample(image, box[None]))
    return sample.image, sample.boxes[0]


def test_training_changes_each_photo_and_its_box_by_its_own_key():
    batch = drawn()
    photos = {**batch, "image": np.uint8(255 * batch["image"])}
    each = rng.row_keys(jax.random.key(0), jnp.arange(6))
    found = jax.jit(partial(labeller(change=augmented).task().augment, at=TRAIN))(each, photos)
    chex.assert_shape([found["image"], found["boxes"]], [(6, HEIGHT, WIDTH, 3), (6, 1, 4)])
    change = jax.jit(augmented)
    for i in range(6):
        image, box = change(each[i], photos["image"][i] / np.float32(255), batch["boxes"][i, 0])
        np.testing.assert_allclose(found["image"][i], image, atol=1e-5)
        np.testing.assert_allclose(found["boxes"][i, 0], box, atol=1e-4)
    for name in ("label", "real"):
        np.testing.assert_array_equal(found[name], batch[name])


def measured(count, seed=0, labels=3):
    """Random rows as `measure` gives them, of the first `labels` labels."""
    random = np.random.default_rng(seed)
    return {
        "label": random.integers(labels, size=count).astype(np.int32),
        "predicted": random.integers(3, size=count).astype(np.int32),
        "iou": random.uniform(size=count).astype(np.float32),
        "distance": random.uniform(size=count).astype(np.float32),
    }


@pytest.mark.parametrize("count, labels", [(40, 3), (41, 3), (1, 1), (12, 2)])
def test_scores_are_those_of_the_loop(count, labels):
    rows = measured(count, labels=labels)
    photos = [{name: rows[name][i] for name in rows} for i in range(count)]
    found = classification_metrics.localization_scores(rows, CLASSES)
    of_labels, confusion = found.pop("labels"), found.pop("confusion")
    assert found == pytest.approx(reference_localization.localization_metrics(photos), rel=1e-6)
    assert list(of_labels) == list(CLASSES)
    for i, name in enumerate(CLASSES):
        own = [photo for photo in photos if photo["label"] == i]
        expected = (
            reference_localization.localization_metrics(own) if own else {"count": 0, "correct": 0}
        )
        assert of_labels[name] == pytest.approx(expected, rel=1e-6)
        counts = [sum(photo["predicted"] == j for photo in own) for j in range(3)]
        assert confusion[i] == counts


def test_a_label_without_photos_has_no_scores_but_may_be_predicted():
    rows = {**measured(4, labels=2), "predicted": np.full(4, 2)}
    report = classification_metrics.localization_scores(rows, CLASSES)
    assert report["labels"]["owl"] == {"count": 0, "correct": 0}
    assert report["confusion"][2] == [0, 0, 0]
    assert sum(row[2] for row in report["confusion"]) == 4
    assert report["accuracy"] == 0


def test_shares_are_of_photos_above_the_bounds():
    rows = {**measured(4), "iou": np.float32([0.5, 0.51, 0.75, 0.2])}
    report = classification_metrics.localization_scores(rows, CLASSES)
    assert (report["iou50"], report["iou70"]) == (0.5, 0.25)
    assert report["iou_median"] == pytest.approx(0.505)


def test_scores_can_be_written_as_json():
    report = classification_metrics.localization_scores(measured(9), CLASSES)
    assert json.loads(json.dumps(report)) == report
