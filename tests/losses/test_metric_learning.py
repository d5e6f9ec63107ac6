from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.losses import metric_learning as losses
from jaxdet.ops import embeddings
from tests.reference import embeddings as reference

laws = settings(deadline=None, max_examples=12)
seeds = given(seed=st.integers(0, 2**32 - 1))
B, K, D = 6, 4, 5
LOGITS = {"l_softmax": losses.l_softmax, "arcface": losses.arcface, "cosface": losses.cosface}
TRIPLETS = {"triplet_hard": losses.triplet_hard, "triplet_semihard": losses.triplet_semihard}
each_logits = pytest.mark.parametrize("name", LOGITS)
each_triplet = pytest.mark.parametrize("name", TRIPLETS)


def all_pairs(x, weights, labels):
    return losses.contrastive(x[:, None], x[None], losses.pair_masks(labels)[0])


EVERY = {  # (features [B, D], weights [K, D], labels [B]) -> loss or logits
    "center": losses.center,
    "contrastive": all_pairs,
    "hard": lambda x, weights, labels: losses.triplet_hard(x, labels)[0],
    "hard_soft": lambda x, weights, labels: losses.triplet_hard(x, labels, soft=True)[0],
    "semihard": lambda x, weights, labels: losses.triplet_semihard(x, labels)[0],
    "lgm": losses.lgm,
    "l_softmax": losses.l_softmax,
    "arcface": losses.arcface,
    "cosface": losses.cosface,
}
each_loss = pytest.mark.parametrize("name", EVERY)
COMPILED = {name: jax.jit(function) for name, function in EVERY.items()}


@partial(jax.jit, static_argnames=("name", "margin"))
def logits(name, x, weights, labels, margin):
    return LOGITS[name](x, weights, labels, margin=margin)


@partial(jax.jit, static_argnames=("name", "soft"))
def triplets(name, x, labels, mask, margin, soft):
    return TRIPLETS[name](x, labels, mask, margin=margin, soft=soft)


def random_inputs(seed):
    """Features [B, D], weights [K, D] and labels [B]."""
    rng = np.random.default_rng(seed)
    x, weights = (rng.normal(size=(n, D)).astype(np.float32) for n in (B, K))
    return x, weights, rng.integers(0, K, B).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def gradients(name, x, weights, labels):
    """Gradients of the sum of a loss with respect to features and weights."""

    def total(x, weights):
        return sum(leaf.sum() for leaf in jax.tree.leaves(EVERY[name](x, weights, labels)))

    return jax.grad(total, argnums=(0, 1))(x, weights)


@each_logits
@pytest.mark.parametrize("margin", [1, 2, 3, 4])
@laws
@seeds
def test_logits_match_the_scalar_reference(name, margin, seed):
    given, margin = random_inputs(seed), margin if name == "l_softmax" else margin / 4
    scale = {"l_softmax": 1}.get(name, 64)
    expected = reference.margin_logits(name, *given, margin, scale)
    found = logits(name, *given, margin)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=scale * 2e-5)


@each_logits
def test_logits_without_margin_or_label_are_plain(name):
    x, weights, labels = random_inputs(0)
    none = {"l_softmax": 1}.get(name, 0)
    cosines = jax.jit(embeddings.pairwise_cosine)
    plain = x @ weights.T if name == "l_softmax" else 64 * cosines(x, weights)
    np.testing.assert_allclose(logits(name, x, weights, labels, none), plain, rtol=1e-4, atol=1e-4)
    for label in (-1, K):
        found = COMPILED[name](x, weights, np.full(B, label))
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-4)


@each_logits
def test_margins_only_lower_the_true_class_and_logits_fall_with_the_angle(name):
    angles = np.linspace(0, np.pi, 301, dtype=np.float32)
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    weights, labels = np.eye(2, dtype=np.float32), np.zeros(301, int)
    own, other = np.asarray(COMPILED[name](x, weights, labels)).T
    plain, same = np.asarray(COMPILED[name](x, weights, np.full(301, -1))).T
    np.testing.assert_array_equal(other, same)
    assert (own <= plain + 1e-5).all() and (np.diff(own) < 1e-3).all()


def test_the_margin_of_l_softmax_may_be_a_float():
    given = random_inputs(1)
    found = jax.jit(partial(losses.l_softmax, margin=3.0))(*given)
    np.testing.assert_array_equal(found, logits("l_softmax", *given, 3))


def test_annealing_mixes_l_softmax_with_plain_logits():
    given = random_inputs(1)
    plain, hard = (logits("l_softmax", *given, m) for m in (1, 4))
    mixed = jax.jit(losses.l_softmax)(*given, annealing=3.0)
    np.testing.assert_allclose(mixed, (3 * plain + hard) / 4, rtol=1e-4, atol=1e-5)


@laws
@seeds
def test_center_loss_and_update_match_the_reference(seed):
    x, centers, labels = random_inputs(seed)
    mask = np.random.default_rng(seed).integers(0, 2, B)
    found = COMPILED["center"](x, centers, labels)
    expected = [reference.distance(v, centers[k]) ** 2 / 2 for v, k in zip(x, labels, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    sums = jax.jit(losses.center_sums)
    moved = losses.center_update(centers, *sums(x, centers, labels, mask), rate=0.3)
    expected = reference.center_update(x, centers, labels, mask, 0.3)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    parts = (sums(x[i::2], centers, labels[i::2], mask[i::2]) for i in (0, 1))
    together = jax.tree.map(lambda a, b: a + b, *parts)
    chex.assert_trees_all_close(together, sums(x, centers, labels, mask), atol=1e-5)


def test_center_updates_converge_to_the_class_means():
    x, centers, labels = random_inputs(2)
    by_features, by_centers = gradients("center", x, centers, labels)
    np.testing.assert_allclose(by_features, x - centers[labels], rtol=1e-5)
    assert not by_centers.any()
    moved = centers
    step = jax.jit(lambda c: losses.center_update(c, *losses.center_sums(x, c, labels)))
    for _ in range(60):
        moved = step(moved)
    for k in range(K):
        goal = x[labels == k].mean(0) if (labels == k).any() else centers[k]
        np.testing.assert_allclose(moved[k], goal, atol=1e-4)


@laws
@seeds
def test_contrastive_loss_of_all_pairs_matches_the_reference_and_is_symmetric(seed):
    x, _, labels = random_inputs(seed)
    found = COMPILED["contrastive"](x, None, labels)
    margin = 1.0
    for i, j in np.ndindex(B, B):
        expected = reference.contrastive(x[i], x[j], labels[i] == labels[j], margin)
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found, found.T)


def test_valid_pairs_are_of_two_different_rows_in_the_mask():
    same, valid = losses.pair_masks(np.array([0, 1, 0, 1]), np.array([1, 1, 1, 0]))
    np.testing.assert_array_equal(same, np.tile(np.eye(2, dtype=bool), (2, 2)))
    expected = ~np.eye(4, dtype=bool)
    expected[3], expected[:, 3] = False, False
    np.testing.assert_array_equal(valid, expected)


@each_triplet
@pytest.mark.parametrize("soft", [False, True])
@laws
@seeds
def test_triplet_losses_match_the_reference(name, soft, seed):
    x, _, labels = random_inputs(seed)
    mask = np.random.default_rng(seed).integers(0, 4, B) > 0
    loss, valid = triplets(name, x, labels, mask, 0.3, soft)
    expected = np.array(getattr(reference, name)(x, labels, mask, 0.3, soft), float)
    np.testing.assert_array_equal(valid, ~np.isnan(expected))
    np.testing.assert_allclose(loss, np.nan_to_num(expected), rtol=1e-4, atol=1e-5)


@each_triplet
@pytest.mark.parametrize("soft", [False, True])
def test_triplet_losses_without_positives_or_negatives_are_zero(name, soft):
    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slope(x, labels):
        loss, valid = TRIPLETS[name](x, labels, soft=soft)
        return loss.sum(), (loss, valid)

    for labels in (np.zeros(B, int), np.arange(B)):
        gradient, (loss, valid) = slope(random_inputs(0)[0], labels)
        assert not loss.any() and not valid.any() and not gradient.any()


@laws
@seeds
def test_gaussian_mixture_matches_the_reference(seed):
    x, means, labels = random_inputs(seed)
    spread = np.random.default_rng(seed).normal(size=(K, D)).astype(np.float32)
    for log_variances in (spread, np.zeros((K, D), np.float32)):
        found = jax.jit(losses.lgm)(x, means, labels, log_variances)
        expected = reference.lgm(x, means, labels, log_variances, 0.1)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gaussian_mixture_with_equal_variances_is_a_softmax_of_distances():
    x, means, labels = random_inputs(3)
    run = jax.jit(losses.lgm)
    found, _ = run(x, means, labels, margin=0.0)
    apart = reference.similarity(x, means, "euclidean")
    chex.assert_trees_all_close(jax.nn.softmax(found), jax.nn.softmax(-(apart**2) / 2), atol=1e-5)
    assert not run(means[labels], means, labels, margin=0.0)[1].any()
    chex.assert_trees_all_close(run(x, means, np.full(B, -1))[0], found, atol=1e-4)


@each_loss
def test_losses_are_invariant_to_rotations_and_permutations(name):
    x, weights, labels = random_inputs(4)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype(np.float32)
    order = np.random.default_rng(1).permutation(B)
    run = COMPILED[name]
    plain = run(x, weights, labels)
    close = partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-3)
    close(run(x @ rotation, weights @ rotation, labels), plain)
    of_pairs = name in ("contrastive", "semihard")
    moved = jax.tree.map(lambda v: v[order][:, order] if of_pairs else v[order], plain)
    close(run(x[order], weights, labels[order]), moved)


@each_loss
def test_jit_and_vmap_change_nothing(name):
    many = [np.stack(column) for column in zip(*map(random_inputs, (5, 6)), strict=True)]
    together = jax.jit(jax.vmap(EVERY[name]))(*many)
    one = [column[0] for column in many]
    found = EVERY[name](*one), COMPILED[name](*one), jax.tree.map(lambda v: v[0], together)
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-4)


@each_loss
def test_bfloat16_inputs_are_computed_in_float32(name):
    x, weights, labels = random_inputs(5)
    low = [array.astype(jnp.bfloat16) for array in (x, weights)]
    found = COMPILED[name](*low, labels)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    expected = COMPILED[name](*(array.astype(np.float32) for array in low), labels)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


@each_loss
def test_gradients_are_finite_for_zero_equal_and_opposite_vectors(name):
    one = np.ones((K, D), np.float32) / np.float32(D**0.5)
    labels = np.arange(B) % K
    for x in (np.zeros((B, D), np.float32), one[labels], -one[labels], one[labels] * 3):
        for weights in (one, np.zeros_like(one)):
            chex.assert_tree_all_finite(COMPILED[name](x, weights, labels))
            chex.assert_tree_all_finite(gradients(name, x, weights, labels))


@each_loss
def test_gradients_match_finite_differences(name):
    x, weights, labels = random_inputs(7)
    rng, step = np.random.default_rng(2), np.float32(1e-2)
    a, b = (rng.normal(size=given.shape).astype(np.float32) for given in (x, weights))
    b *= name != "center"  # whose centers have no gradient
    ends = (COMPILED[name](x + s * a, weights + s * b, labels) for s in (step, -step))
    up, down = (sum(np.float64(leaf).sum() for leaf in jax.tree.leaves(end)) for end in ends)
    by_x, by_weights = gradients(name, x, weights, labels)
    found = (by_x * a).sum() + (by_weights * b).sum()
    np.testing.assert_allclose(found, (up - down) / (2 * step), rtol=2e-2)
