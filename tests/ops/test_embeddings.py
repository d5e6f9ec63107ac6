from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.ops import embeddings
from tests.reference import embeddings as reference_embeddings
from tests.reference import verification as reference_verification

laws = settings(deadline=None, max_examples=12)
seeds = given(st.integers(0, 2**32 - 1))
N, M, D, IDENTITIES = 7, 9, 5, 4
PAIRS = {"cosine": embeddings.cosine, "distance": embeddings.distance}
each_pair = pytest.mark.parametrize("name", PAIRS)
each_metric = pytest.mark.parametrize("metric", ["cosine", "euclidean"])
each_reduction = pytest.mark.parametrize("reduce", ["max", "mean"])
COMPILED = {name: jax.jit(function) for name, function in PAIRS.items()}
l2_normalize = jax.jit(embeddings.l2_normalize)


def random_embeddings(seed):
    """Probes and gallery, one zero vector in each, and gallery identities, some of them padding."""
    rng = np.random.default_rng(seed)
    probes, gallery = (rng.normal(size=(n, D)).astype(np.float32) for n in (N, M))
    probes[0], gallery[1] = 0, 0
    return probes, gallery, rng.integers(-1, IDENTITIES, M).astype(np.int32)


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0].astype(np.float32)


@each_pair
@laws
@seeds
def test_pairs_match_the_reference_and_are_symmetric_and_rotation_invariant(name, seed):
    a, b, _ = random_embeddings(seed)
    table = COMPILED[name](a[:, None], b[None])
    expected = [[getattr(reference_embeddings, name)(p, q) for q in b] for p in a]
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table, COMPILED[name](b[:, None], a[None]).T)
    rotate_by = rotation(seed)
    rotated = COMPILED[name]((a @ rotate_by)[:, None], (b @ rotate_by)[None])
    np.testing.assert_allclose(rotated, table, rtol=1e-4, atol=1e-5)


def test_distance_of_unit_vectors_follows_from_their_cosine():
    a, b = (l2_normalize(random_embeddings(seed)[0][1:]) for seed in (0, 1))
    distance, cosine = (COMPILED[name](a, b) for name in ("distance", "cosine"))
    np.testing.assert_allclose(distance, np.sqrt(2 - 2 * cosine), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_l2_normalize_gives_unit_norm_for_large_and_small_numbers(scale):
    x, _, _ = random_embeddings(0)
    found = l2_normalize(x * np.float32(scale))
    np.testing.assert_allclose(
        [reference_embeddings.norm(v) for v in found], [0] + [1] * (N - 1), rtol=1e-6
    )
    np.testing.assert_allclose(found, l2_normalize(x), rtol=1e-5)


@each_pair
def test_gradients_are_finite_at_zero_and_equal_vectors(name):
    zero, one = jnp.zeros(D), jnp.ones(D)
    gradient = jax.jit(jax.grad(PAIRS[name], argnums=(0, 1)))
    for a, b in [(zero, zero), (zero, one), (one, one)]:
        chex.assert_tree_all_finite(gradient(a, b))
    if name == "distance":
        assert not np.any(gradient(one, one))


def test_gradient_of_cosine_matches_finite_differences():
    a, b = random_embeddings(3)[0][1].astype(float), random_embeddings(3)[1][2].astype(float)
    found, step = jax.jit(jax.grad(embeddings.cosine))(a, b), 1e-5
    for i, e in enumerate(np.eye(D) * step):
        expected = (
            reference_embeddings.cosine(a + e, b) - reference_embeddings.cosine(a - e, b)
        ) / (2 * step)
        assert abs(found[i] - expected) < 1e-5


@each_pair
def test_eager_jit_and_vmap_agree_and_bfloat16_is_computed_in_float32(name):
    a, b, _ = random_embeddings(4)
    b = b[:N]
    plain = PAIRS[name](a, b)
    vmapped = jax.jit(jax.vmap(PAIRS[name]))(a, b)
    chex.assert_trees_all_close(plain, COMPILED[name](a, b), vmapped, rtol=1e-5, atol=1e-6)
    low, wide = (a.astype(jnp.bfloat16) for _ in "ab"), (a.astype(jnp.bfloat16).astype(np.float32),)
    chex.assert_trees_all_equal(PAIRS[name](*low), PAIRS[name](*wide * 2))


@each_metric
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_similarity_in_chunks_matches_the_reference(metric, chunk):
    probes, gallery, _ = random_embeddings(chunk)
    found = embeddings.similarity(probes, gallery, metric=metric, chunk=chunk)
    expected = reference_embeddings.similarity(probes, gallery, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@each_metric
def test_similarity_of_empty_probes_and_gallery(metric):
    probes, gallery, _ = random_embeddings(0)
    assert embeddings.similarity(probes[:0], gallery, metric=metric).shape == (0, M)
    assert embeddings.similarity(probes, gallery[:0], metric=metric).shape == (N, 0)


@each_metric
def test_similarity_and_identify_of_100_000_probes_fit_in_a_gigabyte(metric):
    shaped = jax.ShapeDtypeStruct
    ids = shaped((1000,), jnp.int32)
    vectors = (shaped((n, 512), jnp.float32) for n in (100_000, 1000))
    table = shaped((100_000, 1000), jnp.float32)
    programs = (
        embeddings.similarity.lower(*vectors, metric=metric),
        embeddings.identify.lower(
            table, ids, 960, reduce={"cosine": "max", "euclidean": "mean"}[metric]
        ),
    )
    for program in programs:
        used = program.compile().memory_analysis()
        total = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
        assert total < 1e9


@each_reduction
@laws
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([-2.0, 0.0, 0.4, 2.0]))
def test_identify_matches_the_reference(reduce, seed, threshold):
    probes, gallery, gallery_ids = random_embeddings(seed)
    table = np.asarray(embeddings.similarity(probes, gallery))
    identity, score = embeddings.identify(
        table, gallery_ids, IDENTITIES, reduce=reduce, threshold=threshold
    )
    expected = [
        reference_verification.identify(row, gallery_ids, IDENTITIES, reduce, threshold)
        for row in table
    ]
    np.testing.assert_array_equal(identity, [identity for identity, _ in expected])
    np.testing.assert_allclose(score, [score for _, score in expected], rtol=1e-5, atol=1e-6)
    assert all((np.asarray(identity) < 0) == ~(np.asarray(score) >= threshold))


@each_reduction
def test_identify_is_equivariant_to_the_order_of_images(reduce):
    probes, gallery, gallery_ids = random_embeddings(5)
    table = embeddings.similarity(probes, gallery)
    rows, columns = np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(M)
    run = partial(embeddings.identify, num_identities=IDENTITIES, reduce=reduce, threshold=0.1)
    identity, score = run(table, gallery_ids)
    moved = run(table[rows][:, columns], gallery_ids[columns])
    np.testing.assert_array_equal(moved[0], identity[rows])
    np.testing.assert_allclose(moved[1], score[rows], rtol=1e-6)


def test_one_similar_image_of_an_identity_counts_by_max_and_not_by_mean():
    table, gallery_ids = jnp.array([[0.9, 0.0, 0.5, 0.5]]), np.array([0, 0, 1, 1])
    best, mean = (
        embeddings.identify(table, gallery_ids, 2, reduce=reduce) for reduce in ("max", "mean")
    )
    assert (int(best[0][0]), int(mean[0][0])) == (0, 1)
    np.testing.assert_allclose([best[1][0], mean[1][0]], [0.9, 0.5], rtol=1e-6)


@each_reduction
def test_identify_with_an_empty_gallery_ties_and_nan(reduce):
    run = partial(embeddings.identify, reduce=reduce, threshold=-jnp.inf)
    for count, images, num_identities in [(2, 0, 3), (2, 4, 0), (2, 4, 3)]:
        identity, score = run(jnp.zeros((count, images)), np.full(images, -1), num_identities)
        np.testing.assert_array_equal(identity, [-1, -1])
        assert np.isneginf(score).all()
    assert run(jnp.zeros((0, 4)), np.zeros(4, int), 3)[0].shape == (0,)
    assert run(jnp.full((1, 4), 0.5), np.array([2, 1, 2, 1]), 3)[0][0] == 1
    assert run(jnp.full((1, 4), jnp.nan), np.array([2, 1, 2, 1]), 3)[0][0] == -1
