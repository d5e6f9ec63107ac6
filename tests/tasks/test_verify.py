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
from tests.models.test_resnet import outputs
from tests.models.test_sliding import fill
from tests.reference import embeddings as reference_embeddings
from tests.reference import verification as reference_verification

PEOPLE, DIM = 4, 6
HYPER = {"dropout": 0.0, "pull_weight": 0.7}
TRAIN, EVALUATE = (StepContext(train, 0, 0, HYPER) for train in (True, False))
HEADS = {
    "arcface": {"scale": 8.0, "margin": 0.3},
    "cosface": {"scale": 8.0, "margin": 0.2},
    "l_softmax": {"margin": 3},
}
Tiny = partial(
    Embedder, features=partial(ConvStack, layout="6 M4", norm=False), classes=PEOPLE, dim=DIM
)


class Told(nn.Module):
    """A network whose variables are what it answers."""

    axis_name: str | None = None

    def __call__(self, x, train=False, drop=1.0):
        """(embedding [B, D], logits [B, K])."""
        told = self.variables["params"]
        return told["embedding"], told["embedding"] @ told["logits"]["kernel"]


def verifier(net=None, **fields):
    return verify.VerificationTask(net or Told(), PEOPLE, **fields)


def told(count=8, seed=0):
    """Embeddings of a batch and the classifier's kernel."""
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(DIM, PEOPLE)).astype(np.float32)
    return {
        "embedding": random.normal(size=(count, DIM)).astype(np.float32),
        "logits": {"kernel": kernel},
    }


def drawn(count=8, seed=1, real=None):
    random = np.random.default_rng(seed)
    return {
        "image": random.uniform(size=(count, 8, 8, 3)).astype(np.float32),
        "label": (np.arange(count) % PEOPLE).astype(np.int32),
        "real": np.ones(count, np.float32) if real is None else np.float32(real),
    }


def judged(params, batch, at=TRAIN, centres=None, **fields):
    """((share, terms, stats), gradient by the parameters), on the host."""
    task = verifier(**fields).task()

    def judging(params, batch):
        kept = {} if centres is None else {"batch_stats": {verify.CENTERS: centres}}
        share, (stats, terms) = task.loss({"params": params, **kept}, batch, jax.random.key(0), context)
        return share, (terms, stats)

    (share, (terms, stats)), slopes = jax.device_get(
        jax.jit(jax.value_and_grad(judging, has_aux=True))(params, batch)
    )
    return share, {name: float(value) for name, value in terms.items()}, stats, slopes


def entropy(logits, labels):
    """Cross entropy of each row."""
    return [-special.log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)]


def test_the_cross_entropy_is_the_loop():
    params, batch = told(), drawn()
    share, terms, _, slopes = judged(params, batch)
    logits = params["embedding"] @ params["logits"]["kernel"]
    assert share == terms["loss"] == pytest.approx(np.mean(entropy(logits, batch["label"])), 1e-5)
    assert terms["accuracy"] == np.mean(logits.argmax(1) == batch["label"])
    chex.assert_tree_all_finite(slopes)


def test_labels_are_smoothed_in_training_only():
    params, batch = told(), drawn()
    logits = params["embedding"] @ params["logits"]["kernel"]
    found = {context.train: judged(params, batch, context, smoothing=0.2)[0] for at in (TRAIN, EVALUATE)}
    every = [np.mean(entropy(logits, np.full(8, who))) for who in range(PEOPLE)]
    plain = np.mean(entropy(logits, batch["label"]))
    assert found[True] == pytest.approx(0.8 * plain + 0.2 * np.mean(every), 1e-5)
    assert found[False] == pytest.approx(plain, 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_heads_have_their_margin_in_training_and_not_in_evaluation(head):
    params, batch, how = told(), drawn(), HEADS[head]
    fields = {"head": head, "margins": tuple(how.items())}
    hard = reference_embeddings.margin_logits(
        head, params["embedding"], params["logits"]["kernel"].T, batch["label"], **how
    )
    share, terms, _, slopes = judged(params, batch, **fields)
    assert share == pytest.approx(np.mean(entropy(hard, batch["label"])), 1e-4)
    chex.assert_tree_all_finite(slopes)
    fair = reference_embeddings.margin_logits(
        head, params["embedding"], params["logits"]["kernel"].T, np.full(8, -1), **how
    )
    judgement = judged(params, batch, EVALUATE, **fields)[1]
    right = float(np.mean(fair.argmax(1) == batch["label"]))
    assert terms["accuracy"] == judgement["accuracy"] == right
    assert judgement["loss"] == pytest.approx(np.mean(entropy(fair, batch["label"])), 1e-4)
    assert judgement["loss"] < terms["loss"]  # it is easier without a margin
    found = verifier(**fields).task().predict({"params": params}, batch["image"])
    np.testing.assert_array_equal(found["label"], fair.argmax(1))


def test_the_mixture_of_gaussians_adds_its_likelihood():
    params, batch = told(), drawn()
    means, spread = params["logits"]["kernel"].T, np.linspace(-1, 1, PEOPLE * DIM, dtype="float32")
    params["gaussians"] = {"log": spread.reshape(PEOPLE, DIM)}
    logits, likelihood = reference_embeddings.lgm(
        params["embedding"], means, batch["label"], params["gaussians"]["log"], 0.1
    )
    expected = np.mean(entropy(logits, batch["label"])) + verify.LIKELIHOOD_WEIGHT * np.mean(
        likelihood
    )
    share, _, _, slopes = judged(params, batch, head="lgm")
    assert share == pytest.approx(expected, 1e-4)
    assert np.abs(slopes["gaussians"]["log"]).min() > 0  # they learn


def unit(params):
    lengths = np.linalg.norm(params["embedding"], axis=1, keepdims=True)
    return params["embedding"] / lengths


@pytest.mark.parametrize("pull", ["contrastive", "triplet_hard", "triplet_semihard"])
def test_losses_of_embeddings_are_the_loops_over_real_rows(pull):
    params, batch = told(), drawn(real=[1, 1, 1, 0, 1, 1, 0, 1])
    x, label, on = unit(params), batch["label"], batch["real"] > 0
    if pull == "contrastive":
        found = [
            reference_embeddings.contrastive(x[i], x[j], label[i] == label[j], 1.0)
            for i in range(8)
            for j in range(8)
            if i != j and on[i] and on[j]
        ]
        expected = np.mean(found)
    else:
        found = np.ravel(getattr(reference_embeddings, pull)(x, label, on, 0.2, False))
        expected = np.mean([loss for loss in found if loss is not None])
    share, terms, _, slopes = judged(params, batch, pull=pull)
    assert terms["pull"] == pytest.approx(expected, 1e-4)
    assert share == pytest.approx(terms["classification"] + 0.7 * terms["pull"])
    assert not slopes["embedding"][batch["real"] == 0].any()


def test_centres_move_in_training_by_the_rule_of_the_paper_and_stay_in_evaluation():
    params, batch = told(), drawn(real=[1, 1, 1, 1, 1, 0, 1, 1])
    centres = np.random.default_rng(5).normal(size=(PEOPLE, DIM)).astype(np.float32)
    _, terms, stats, _ = judged(params, batch, centres=centres, pull="center")
    on = batch["real"] > 0
    expected = reference_embeddings.center_update(
        params["embedding"], centres, batch["label"], on, 0.5
    )
    np.testing.assert_allclose(stats[verify.CENTERS], expected, rtol=1e-5, atol=1e-6)
    apart = params["embedding"] - centres[batch["label"]]
    assert terms["pull"] == pytest.approx((0.5 * (apart**2).sum(1))[on].mean(), 1e-5)
    still = judged(params, batch, EVALUATE, centres, pull="center")[2]
    np.testing.assert_array_equal(still[verify.CENTERS], centres)


@pytest.mark.parametrize("pull", ["none", "center"])
def test_rows_that_only_pad_change_nothing(pull):
    params, batch = told(), drawn(real=[1, 1, 1, 1, 1, 1, 0, 0])
    centres = np.ones((PEOPLE, DIM), np.float32) if pull == "center" else None
    whole = judged(params, batch, centres=centres, pull=pull)
    fewer = {**params, "embedding": params["embedding"][:6]}
    alone = judged(
        fewer, {k: column[:6] for k, column in batch.items()}, centres=centres, pull=pull
    )
    chex.assert_trees_all_close(whole[:3], alone[:3], rtol=1e-5)


@pytest.mark.parametrize("pull", ["none", "center"])
def test_four_devices_give_the_loss_and_centres_of_one(pull):
    batch, net = drawn(8), Tiny()
    task = verifier(net, pull=pull).task()
    variables = fill(outputs(net, batch["image"])[1])
    if pull == "center":
        variables["batch_stats"] = {verify.CENTERS: np.ones((PEOPLE, DIM), np.float32)}

    def step(variables, batch, axis):
        def share(params):
            at = TRAIN._replace(axis=axis)
            loss, (stats, terms) = task.loss(
                {**variables, "params": params}, batch, jax.random.key(0), at
            )
            return loss, (terms, stats)

        (_, (terms, stats)), slopes = jax.value_and_grad(share, has_aux=True)(variables["params"])
        return parallel.psum((terms, slopes), axis), stats

    (terms, slopes), stats = jax.jit(partial(step, axis=None))(variables, batch)
    spread = jax.pmap(partial(step, axis="d"), axis_name="d", in_axes=(None, 0))
    parts = jax.tree.map(lambda rows: rows.reshape(4, 2, *rows.shape[1:]), batch)
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get(spread(variables, parts)))
    chex.assert_trees_all_close(first, ((terms, slopes), stats), rtol=1e-4, atol=1e-6)


def test_centres_are_of_the_state_from_the_first_step_on():
    task = verifier(Tiny(), pull="center").task()
    shape = jax.eval_shape(task.init, jax.random.key(0), drawn())
    assert shape["batch_stats"][verify.CENTERS].shape == (PEOPLE, DIM)
    plain = jax.eval_shape(verifier(Tiny()).task().init, jax.random.key(0), drawn())
    assert "batch_stats" not in plain


def test_embeddings_are_measured_at_length_1_and_labels_beside_them():
    params, batch, task = told(), drawn(), verifier().task()
    found = jax.device_get(task.predict({"params": params}, batch["image"]))
    rows = jax.device_get(task.measure(found, batch))
    np.testing.assert_allclose(rows["embedding"], unit(params), rtol=1e-5)
    logits = params["embedding"] @ params["logits"]["kernel"]
    np.testing.assert_array_equal(rows["predicted"], logits.argmax(1))
    np.testing.assert_allclose(found["score"], special.softmax(logits, 1).max(1), rtol=1e-5)


def test_an_image_and_its_mirror_image_have_one_embedding():
    net, batch = Tiny(), drawn()
    variables = fill(outputs(net, batch["image"])[1])
    images, turned = batch["image"], batch["image"][:, :, ::-1]
    predict = jax.jit(verifier(net, mirrored=True).task().predict)
    one, other = (jax.device_get(predict(variables, each)) for each in (images, turned))
    np.testing.assert_allclose(one["embedding"], other["embedding"], rtol=1e-4, atol=1e-6)
    plain = jax.jit(verifier(net).task().predict)
    alone = [jax.device_get(plain(variables, each)) for each in (images, turned)]
    both = alone[0]["embedding"] + alone[1]["embedding"]
    np.testing.assert_allclose(one["embedding"], both, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(one["label"], alone[0]["label"])


def test_the_report_judges_all_pairs():
    x, label = unit(told(12)), np.arange(12) % PEOPLE
    scores, same = verify.pairs(x, label)
    expected = [
        (reference_embeddings.cosine(x[i], x[j]), label[i] == label[j])
        for i in range(12)
        for j in range(i + 1, 12)
    ]
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(same, [one for _, one in expected])
    rows = {"label": label, "predicted": (label + (np.arange(12) < 3)) % PEOPLE, "embedding": x}
    found = verify.report(rows)
    assert found["accuracy"] == 0.75 and found["correct"] == 9 and found["count"] == 12
    assert found["auc"] == pytest.approx(reference_verification.auc(scores, same), abs=1e-6)
    assert 0 <= found["eer"] <= 1


@pytest.mark.parametrize("label", [[0, 1, 2], [0, 0, 0], [0]])
def test_pairs_of_one_kind_have_no_curve(label):
    label = np.array(label)
    rows = {"label": label, "predicted": label, "embedding": unit(told(len(label)))}
    assert set(verify.report(rows)) == {"count", "correct", "accuracy"}


def test_images_change_in_training_only():
    batch = {**drawn(), "image": np.uint8(200 * drawn()["image"])}
    keys = jax.random.split(jax.random.key(0), 8)
    task = verifier(change=lambda key, image: image * jax.random.uniform(key)).task()
    trained, still = (task.augment(keys, batch, context)["image"] for at in (TRAIN, EVALUATE))
    np.testing.assert_allclose(still, batch["image"] / 255, rtol=1e-6)
    for image, key, before in zip(trained, keys, batch["image"], strict=True):
        np.testing.assert_allclose(image, before * jax.random.uniform(key) / 255, rtol=1e-5)
