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
N, M, D, PEOPLE = 7, 9, 5, 4
PAIRS = {"cosine": embeddings.cosine, "distance": embeddings.distance}
each_pair = pytest.mark.parametrize("name", PAIRS)
each_kind = pytest.mark.parametrize("kind", ["cosine", "euclidean"])
each_join = pytest.mark.parametrize("join", ["max", "mean"])
COMPILED = {name: jax.jit(function) for name, function in PAIRS.items()}
unit = jax.jit(embeddings.l2_normalize)


def drawn(seed):
    """Unknown and known vectors, one of each zeros, and owners, some of whom only pad."""
    rng = np.random.default_rng(seed)
    unknown, known = (rng.normal(size=(n, D)).astype(np.float32) for n in (N, M))
    unknown[0], known[1] = 0, 0
    return unknown, known, rng.integers(-1, PEOPLE, M).astype(np.int32)


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0].astype(np.float32)


@each_pair
@laws
@seeds
def test_pairs_are_the_loop_and_symmetric_and_turn_together(name, seed):
    a, b, _ = drawn(seed)
    table = COMPILED[name](a[:, None], b[None])
    expected = [[getattr(reference_embeddings, name)(p, q) for q in b] for p in a]
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table, COMPILED[name](b[:, None], a[None]).T)
    turn = rotation(seed)
    turned = COMPILED[name]((a @ turn)[:, None], (b @ turn)[None])
    np.testing.assert_allclose(turned, table, rtol=1e-4, atol=1e-5)


def test_the_distance_of_unit_vectors_is_told_by_their_cosine():
    a, b = (unit(drawn(seed)[0][1:]) for seed in (0, 1))
    distance, cosine = (COMPILED[name](a, b) for name in ("distance", "cosine"))
    np.testing.assert_allclose(distance, np.sqrt(2 - 2 * cosine), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_unit_has_length_one_for_large_and_small_numbers(scale):
    x, _, _ = drawn(0)
    found = unit(x * np.float32(scale))
    np.testing.assert_allclose(
        [reference_embeddings.norm(v) for v in found], [0] + [1] * (N - 1), rtol=1e-6
    )
    np.testing.assert_allclose(found, unit(x), rtol=1e-5)


@each_pair
def test_gradients_are_finite_at_zeros_and_equal_vectors(name):
    zero, one = jnp.zeros(D), jnp.ones(D)
    slope = jax.jit(jax.grad(PAIRS[name], argnums=(0, 1)))
    for a, b in [(zero, zero), (zero, one), (one, one)]:
        chex.assert_tree_all_finite(slope(a, b))
    if name == "distance":
        assert not np.any(slope(one, one))


def test_the_gradient_of_a_cosine_is_that_of_differences():
    a, b = drawn(3)[0][1].astype(float), drawn(3)[1][2].astype(float)
    found, step = jax.jit(jax.grad(embeddings.cosine))(a, b), 1e-5
    for i, e in enumerate(np.eye(D) * step):
        expected = (
            reference_embeddings.cosine(a + e, b) - reference_embeddings.cosine(a - e, b)
        ) / (2 * step)
        assert abs(found[i] - expected) < 1e-5


@each_pair
def test_jit_is_vmap_is_plain_and_bfloat16_is_computed_in_float32(name):
    a, b, _ = drawn(4)
    b = b[:N]
    plain = PAIRS[name](a, b)
    swept = jax.jit(jax.vmap(PAIRS[name]))(a, b)
    chex.assert_trees_all_close(plain, COMPILED[name](a, b), swept, rtol=1e-5, atol=1e-6)
    low, wide = (a.astype(jnp.bfloat16) for _ in "ab"), (a.astype(jnp.bfloat16).astype(np.float32),)
    chex.assert_trees_all_equal(PAIRS[name](*low), PAIRS[name](*wide * 2))


@each_kind
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_similarity_in_chunks_is_the_loop(kind, chunk):
    unknown, known, _ = drawn(chunk)
    found = embeddings.similarity(unknown, known, kind=kind, chunk=chunk)
    expected = reference_embeddings.similarity(unknown, known, kind)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@each_kind
def test_similarity_of_nothing_and_to_nothing(kind):
    unknown, known, _ = drawn(0)
    assert embeddings.similarity(unknown[:0], known, kind=kind).shape == (0, M)
    assert embeddings.similarity(unknown, known[:0], kind=kind).shape == (N, 0)


@each_kind
def test_similarity_and_identification_of_100_000_fit_in_a_gigabyte(kind):
    shaped = jax.ShapeDtypeStruct
    people = shaped((1000,), jnp.int32)
    vectors = (shaped((n, 512), jnp.float32) for n in (100_000, 1000))
    table = shaped((100_000, 1000), jnp.float32)
    programs = (
        embeddings.similarity.lower(*vectors, kind=kind),
        embeddings.identify.lower(
            table, people, 960, join={"cosine": "max", "euclidean": "mean"}[kind]
        ),
    )
    for program in programs:
        used = program.compile().memory_analysis()
        total = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
        assert total < 1e9


@each_join
@laws
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([-2.0, 0.0, 0.4, 2.0]))
def test_identify_is_the_loop(join, seed, threshold):
    unknown, known, owner = drawn(seed)
    table = np.asarray(embeddings.similarity(unknown, known))
    who, score = embeddings.identify(table, owner, PEOPLE, join=join, threshold=threshold)
    expected = [
        reference_verification.identify(row, owner, PEOPLE, join, threshold) for row in table
    ]
    np.testing.assert_array_equal(who, [identity for identity, _ in expected])
    np.testing.assert_allclose(score, [score for _, score in expected], rtol=1e-5, atol=1e-6)
    assert all((np.asarray(who) < 0) == ~(np.asarray(score) >= threshold))


@each_join
def test_identify_does_not_care_for_the_order_of_images(join):
    unknown, known, owner = drawn(5)
    table = embeddings.similarity(unknown, known)
    rows, columns = np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(M)
    run = partial(embeddings.identify, identities=PEOPLE, join=join, threshold=0.1)
    who, score = run(table, owner)
    moved = run(table[rows][:, columns], owner[columns])
    np.testing.assert_array_equal(moved[0], who[rows])
    np.testing.assert_allclose(moved[1], score[rows], rtol=1e-6)


def test_one_good_image_of_many_counts_by_max_and_not_by_mean():
    table, owner = jnp.array([[0.9, 0.0, 0.5, 0.5]]), np.array([0, 0, 1, 1])
    best, mean = (embeddings.identify(table, owner, 2, join=join) for join in ("max", "mean"))
    assert (int(best[0][0]), int(mean[0][0])) == (0, 1)
    np.testing.assert_allclose([best[1][0], mean[1][0]], [0.9, 0.5], rtol=1e-6)


@each_join
def test_nobody_is_known_equal_scores_and_numbers_that_are_none(join):
    run = partial(embeddings.identify, join=join, threshold=-jnp.inf)
    for table, owner, people in [(2, 0, 3), (2, 4, 0), (2, 4, 3)]:
        who, score = run(jnp.zeros((table, owner)), np.full(owner, -1), people)
        np.testing.assert_array_equal(who, [-1, -1])
        assert np.isneginf(score).all()
    assert run(jnp.zeros((0, 4)), np.zeros(4, int), 3)[0].shape == (0,)
    assert run(jnp.full((1, 4), 0.5), np.array([2, 1, 2, 1]), 3)[0][0] == 1
    assert run(jnp.full((1, 4), jnp.nan), np.array([2, 1, 2, 1]), 3)[0][0] == -1
