from functools import partial

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from scipy import special

from jaxdet.models.embedder import Embedder
from jaxdet.models.plain import ConvStack
from jaxdet.tasks import verify
from jaxdet.training import parallel
from jaxdet.types import StepContext
from tests.models.helpers import outputs, random_like
from tests.reference import embeddings as reference_embeddings
from tests.reference import verification as reference_verification

IDENTITIES, DIM = 4, 6
HPARAMS = {"dropout": 0.0, "embedding_loss_weight": 0.7}
TRAIN, EVALUATE = (StepContext(train, 0, 0, HPARAMS) for train in (True, False))
HEADS = {
    "arcface": {"scale": 8.0, "margin": 0.3},
    "cosface": {"scale": 8.0, "margin": 0.2},
    "l_softmax": {"margin": 3},
}
Tiny = partial(
    Embedder, features=partial(ConvStack, layout="6 M4", norm=False), classes=IDENTITIES, dim=DIM
)


class ConstantNet(nn.Module):
    """A network that returns its variables."""

    axis_name: str | None = None

    def __call__(self, x, train=False, dropout_scale=1.0):
        """(embedding [B, D], logits [B, K])."""
        params = self.variables["params"]
        return params["embedding"], params["embedding"] @ params["logits"]["kernel"]


def make_task(net=None, **fields):
    return verify.VerificationTask(net or ConstantNet(), IDENTITIES, **fields)


def random_params(count=8, seed=0):
    """Embeddings of a batch and the kernel of the classifier."""
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(DIM, IDENTITIES)).astype(np.float32)
    return {
        "embedding": random.normal(size=(count, DIM)).astype(np.float32),
        "logits": {"kernel": kernel},
    }


def random_batch(count=8, seed=1, real=None):
    random = np.random.default_rng(seed)
    return {
        "image": random.uniform(size=(count, 8, 8, 3)).astype(np.float32),
        "label": (np.arange(count) % IDENTITIES).astype(np.int32),
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def loss_and_gradient(params, batch, context=TRAIN, centers=None, **fields):
    """(loss, terms, stats, gradient with respect to the parameters), on the host."""
    task = make_task(**fields)

    def loss_of(params, batch):
        stats = {} if centers is None else {"batch_stats": {verify.CENTERS: centers}}
        variables = {"params": params, **stats}
        loss, (stats, terms) = task.loss(variables, batch, jax.random.key(0), context)
        return loss, (terms, stats)

    (loss, (terms, stats)), gradient = jax.device_get(
        jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params, batch)
    )
    return loss, {name: float(value) for name, value in terms.items()}, stats, gradient


def cross_entropy(logits, labels):
    """Cross-entropy of each row."""
    return [-special.log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)]


def test_loss_equals_reference_cross_entropy():
    params, batch = random_params(), random_batch()
    loss, terms, _, gradient = loss_and_gradient(params, batch)
    logits = params["embedding"] @ params["logits"]["kernel"]
    assert (
        loss == terms["loss"] == pytest.approx(np.mean(cross_entropy(logits, batch["label"])), 1e-5)
    )
    assert terms["accuracy"] == np.mean(logits.argmax(1) == batch["label"])
    chex.assert_tree_all_finite(gradient)


def test_class_weights_are_weights_of_the_classification_loss_in_training():
    params, batch, weights = random_params(), random_batch(), (1.0, 4.0, 0.5, 2.0)
    logits = params["embedding"] @ params["logits"]["kernel"]
    losses = cross_entropy(logits, batch["label"])
    own = np.array(weights)[batch["label"]]
    for context, factors in ((TRAIN, own), (EVALUATE, np.ones(8))):
        found = loss_and_gradient(params, batch, context, class_weights=weights)[0]
        assert found == pytest.approx(np.average(losses, weights=factors), 1e-5)


def test_labels_are_smoothed_in_training_only():
    params, batch = random_params(), random_batch()
    logits = params["embedding"] @ params["logits"]["kernel"]
    found = {
        context.train: loss_and_gradient(params, batch, context, label_smoothing=0.2)[0]
        for context in (TRAIN, EVALUATE)
    }
    labels = [np.full(8, label) for label in range(IDENTITIES)]
    uniform = np.mean([cross_entropy(logits, label) for label in labels])
    plain = np.mean(cross_entropy(logits, batch["label"]))
    assert found[True] == pytest.approx(0.8 * plain + 0.2 * uniform, 1e-5)
    assert found[False] == pytest.approx(plain, 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_heads_have_their_margin_in_training_only(head):
    params, batch, margins = random_params(), random_batch(), HEADS[head]
    fields = {"head": head, "margins": tuple(margins.items())}
    hard = reference_embeddings.margin_logits(
        head, params["embedding"], params["logits"]["kernel"].T, batch["label"], **margins
    )
    loss, terms, _, gradient = loss_and_gradient(params, batch, **fields)
    assert loss == pytest.approx(np.mean(cross_entropy(hard, batch["label"])), 1e-4)
    chex.assert_tree_all_finite(gradient)
    fair = reference_embeddings.margin_logits(
        head, params["embedding"], params["logits"]["kernel"].T, np.full(8, -1), **margins
    )
    evaluated = loss_and_gradient(params, batch, EVALUATE, **fields)[1]
    right = float(np.mean(fair.argmax(1) == batch["label"]))
    assert terms["accuracy"] == evaluated["accuracy"] == right
    assert evaluated["loss"] == pytest.approx(np.mean(cross_entropy(fair, batch["label"])), 1e-4)
    assert evaluated["loss"] < terms["loss"]  # lower without a margin
    found = make_task(**fields).predict({"params": params}, batch["image"])
    np.testing.assert_array_equal(found["label"], fair.argmax(1))


def test_lgm_adds_its_likelihood_loss():
    params, batch = random_params(), random_batch()
    means, log_variance = (
        params["logits"]["kernel"].T,
        np.linspace(-1, 1, IDENTITIES * DIM, dtype="float32"),
    )
    params["gaussians"] = {"log": log_variance.reshape(IDENTITIES, DIM)}
    logits, likelihood = reference_embeddings.lgm(
        params["embedding"], means, batch["label"], params["gaussians"]["log"], 0.1
    )
    expected = np.mean(cross_entropy(logits, batch["label"])) + verify.LIKELIHOOD_WEIGHT * np.mean(
        likelihood
    )
    loss, _, _, gradient = loss_and_gradient(params, batch, head="lgm")
    assert loss == pytest.approx(expected, 1e-4)
    assert np.abs(gradient["gaussians"]["log"]).min() > 0  # trained


def normalized(params):
    lengths = np.linalg.norm(params["embedding"], axis=1, keepdims=True)
    return params["embedding"] / lengths


@pytest.mark.parametrize("embedding_loss", ["contrastive", "triplet_hard", "triplet_semihard"])
def test_embedding_losses_equal_reference_over_real_rows(embedding_loss):
    params, batch = random_params(), random_batch(real=[1, 1, 1, 0, 1, 1, 0, 1])
    x, label, on = normalized(params), batch["label"], batch["real"] > 0
    if embedding_loss == "contrastive":
        found = [
            reference_embeddings.contrastive(x[i], x[j], label[i] == label[j], 1.0)
            for i in range(8)
            for j in range(8)
            if i != j and on[i] and on[j]
        ]
        expected = np.mean(found)
    else:
        found = np.ravel(getattr(reference_embeddings, embedding_loss)(x, label, on, 0.2, False))
        expected = np.mean([loss for loss in found if loss is not None])
    loss, terms, _, gradient = loss_and_gradient(params, batch, embedding_loss=embedding_loss)
    assert terms["embedding"] == pytest.approx(expected, 1e-4)
    assert loss == pytest.approx(terms["classification"] + 0.7 * terms["embedding"])
    assert not gradient["embedding"][batch["real"] == 0].any()


def test_centers_are_updated_in_training_only():
    params, batch = random_params(), random_batch(real=[1, 1, 1, 1, 1, 0, 1, 1])
    centers = np.random.default_rng(5).normal(size=(IDENTITIES, DIM)).astype(np.float32)
    _, terms, stats, _ = loss_and_gradient(params, batch, centers=centers, embedding_loss="center")
    on = batch["real"] > 0
    expected = reference_embeddings.center_update(
        params["embedding"], centers, batch["label"], on, 0.5
    )
    np.testing.assert_allclose(stats[verify.CENTERS], expected, rtol=1e-5, atol=1e-6)
    apart = params["embedding"] - centers[batch["label"]]
    assert terms["embedding"] == pytest.approx((0.5 * (apart**2).sum(1))[on].mean(), 1e-5)
    evaluated = loss_and_gradient(params, batch, EVALUATE, centers, embedding_loss="center")[2]
    np.testing.assert_array_equal(evaluated[verify.CENTERS], centers)


@pytest.mark.parametrize("embedding_loss", ["none", "center"])
def test_padded_rows_have_no_effect(embedding_loss):
    params, batch = random_params(), random_batch(real=[1, 1, 1, 1, 1, 1, 0, 0])
    centers = np.ones((IDENTITIES, DIM), np.float32) if embedding_loss == "center" else None
    whole = loss_and_gradient(params, batch, centers=centers, embedding_loss=embedding_loss)
    fewer = {**params, "embedding": params["embedding"][:6]}
    alone = loss_and_gradient(
        fewer,
        {k: column[:6] for k, column in batch.items()},
        centers=centers,
        embedding_loss=embedding_loss,
    )
    chex.assert_trees_all_close(whole[:3], alone[:3], rtol=1e-5)


@pytest.mark.parametrize("embedding_loss", ["none", "center"])
def test_four_devices_give_loss_gradient_and_centers_of_one(embedding_loss):
    batch, net = random_batch(8), Tiny()
    task = make_task(net, embedding_loss=embedding_loss)
    variables = random_like(outputs(net, batch["image"])[1])
    if embedding_loss == "center":
        variables["batch_stats"] = {verify.CENTERS: np.ones((IDENTITIES, DIM), np.float32)}

    def step(variables, batch, axis):
        def loss_of(params):
            given, context = {**variables, "params": params}, TRAIN._replace(axis=axis)
            loss, (stats, terms) = task.loss(given, batch, jax.random.key(0), context)
            return loss, (terms, stats)

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (_, (terms, stats)), gradient = gradient_of(variables["params"])
        return parallel.psum((terms, gradient), axis), stats

    (terms, gradient), stats = jax.jit(partial(step, axis=None))(variables, batch)
    spread = jax.pmap(partial(step, axis="d"), axis_name="d", in_axes=(None, 0))
    parts = jax.tree.map(lambda rows: rows.reshape(4, 2, *rows.shape[1:]), batch)
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get(spread(variables, parts)))
    chex.assert_trees_all_close(first, ((terms, gradient), stats), rtol=1e-4, atol=1e-6)


def test_centers_are_among_the_initial_variables():
    task = make_task(Tiny(), embedding_loss="center")
    shape = jax.eval_shape(task.init, jax.random.key(0), random_batch())
    assert shape["batch_stats"][verify.CENTERS].shape == (IDENTITIES, DIM)
    plain = jax.eval_shape(make_task(Tiny()).init, jax.random.key(0), random_batch())
    assert "batch_stats" not in plain


def test_measured_embeddings_have_length_1():
    params, batch, task = random_params(), random_batch(), make_task()
    found = jax.device_get(task.predict({"params": params}, batch["image"]))
    rows = jax.device_get(task.measure(found, batch))
    np.testing.assert_allclose(rows["embedding"], normalized(params), rtol=1e-5)
    logits = params["embedding"] @ params["logits"]["kernel"]
    np.testing.assert_array_equal(rows["predicted"], logits.argmax(1))
    np.testing.assert_allclose(found["score"], special.softmax(logits, 1).max(1), rtol=1e-5)


def test_tta_adds_the_embedding_of_the_mirror_image():
    net, batch = Tiny(), random_batch()
    variables = random_like(outputs(net, batch["image"])[1])
    images, mirrored = batch["image"], batch["image"][:, :, ::-1]
    predict = jax.jit(make_task(net, tta=True).predict)
    one, other = (jax.device_get(predict(variables, each)) for each in (images, mirrored))
    np.testing.assert_allclose(one["embedding"], other["embedding"], rtol=1e-4, atol=1e-6)
    plain = jax.jit(make_task(net).predict)
    alone = [jax.device_get(plain(variables, each)) for each in (images, mirrored)]
    both = alone[0]["embedding"] + alone[1]["embedding"]
    np.testing.assert_allclose(one["embedding"], both, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(one["label"], alone[0]["label"])


def test_report_scores_all_pairs():
    x, label = normalized(random_params(12)), np.arange(12) % IDENTITIES
    scores, same = verify.all_pairs(x, label)
    expected = [
        (reference_embeddings.cosine(x[i], x[j]), label[i] == label[j])
        for i in range(12)
        for j in range(i + 1, 12)
    ]
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(same, [one for _, one in expected])
    rows = {"label": label, "predicted": (label + (np.arange(12) < 3)) % IDENTITIES, "embedding": x}
    found = make_task().report(rows)
    assert found["accuracy"] == 0.75 and found["correct"] == 9 and found["count"] == 12
    assert found["auc"] == pytest.approx(reference_verification.auc(scores, same), abs=1e-6)
    assert 0 <= found["eer"] <= 1


@pytest.mark.parametrize("label", [[0, 1, 2], [0, 0, 0], [0]])
def test_without_both_kinds_of_pairs_there_is_no_auc(label):
    label = np.array(label)
    rows = {"label": label, "predicted": label, "embedding": normalized(random_params(len(label)))}
    assert set(make_task().report(rows)) == {"count", "correct", "accuracy"}


def test_images_are_augmented_in_training_only():
    batch = {**random_batch(), "image": np.uint8(200 * random_batch()["image"])}
    keys = jax.random.split(jax.random.key(0), 8)
    task = make_task(transform=lambda key, image: image * jax.random.uniform(key))
    trained, evaluated = (
        task.augment(keys, batch, context)["image"] for context in (TRAIN, EVALUATE)
    )
    np.testing.assert_allclose(evaluated, batch["image"] / 255, rtol=1e-6)
    for image, key, before in zip(trained, keys, batch["image"], strict=True):
        np.testing.assert_allclose(image, before * jax.random.uniform(key) / 255, rtol=1e-5)
