import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.lib import reference
from jaxdet.ops import windows
from jaxdet.ops.windows import Grid, conv, parse, pool
from tests.reference import windows as reference_windows

LECTURE_NET = parse("c5,p2")
laws = settings(deadline=None, max_examples=100)

valid_layers = st.one_of(
    st.builds(conv, st.integers(1, 5), st.integers(1, 3)),
    st.builds(pool, st.integers(1, 3), st.none() | st.integers(1, 3)),
)
valid_chains = st.lists(valid_layers, min_size=1, max_size=4).map(tuple)
padded_chains = st.lists(
    st.builds(conv, st.integers(2, 5), st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=4
).map(tuple)


@laws
@given(valid_chains | padded_chains, st.integers(1, 70), st.integers(1, 70))
def test_grid_matches_the_reference(chain, height, width):
    down, across = (reference_windows.receptive_fields(chain, size) for size in (height, width))
    assume(down and across)
    window, stride, rows, columns, offset = windows.grid(chain, height, width)
    starts = [[offset + i * stride for i in range(n)] for n in (rows, columns)]
    assert [[(i, i + window) for i in each] for each in starts] == [down, across]


@laws
@given(valid_chains | padded_chains, st.integers(1, 70))
def test_output_size_matches_the_reference(chain, size):
    assert windows.output_size(chain, size) == len(reference_windows.receptive_fields(chain, size))


@laws
@given(valid_chains, valid_chains)
def test_receptive_fields_compose(first, second):
    inner, outer = windows.receptive_field(first), windows.receptive_field(second)
    both = windows.receptive_field(first + second)
    assert both.stride == inner.stride * outer.stride
    assert both.window == inner.window + (outer.window - 1) * inner.stride


@pytest.mark.parametrize(
    "words, window, height, width, expected",
    [  # computed by hand for the network of Andrew Ng's lecture and extensions of it
        ("c5,p2", 14, 16, 16, Grid(14, 2, 2, 2)),
        ("c5,p2", 14, 28, 28, Grid(14, 2, 8, 8)),
        ("c5,p2", 14, 720, 1080, Grid(14, 2, 354, 534)),
        ("c5,p2,c3", 14, 28, 28, Grid(14, 2, 8, 8)),
        ("c5,p2,c3,p2", 14, 28, 28, Grid(12, 4, 5, 5)),
        ("c5,p2,c5,p2", 28, 64, 64, Grid(28, 4, 10, 10)),
        ("c5,p2", 15, 16, 16, Grid(14, 2, 2, 2)),
    ],
)
def test_grids_computed_by_hand(words, window, height, width, expected):
    features = parse(words)
    assert (
        windows.grid((*features, windows.head_layer(features, window)), height, width) == expected
    )


def test_grid_rejects_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match="20 x 5 pixels is smaller than the 6 x 6 window"):
        windows.grid(LECTURE_NET, 20, 5)


def test_padding_does_not_restore_outputs_lost_in_an_earlier_layer():
    chain = parse("c5,c2p1")
    assert windows.output_size(chain, 4) == 0
    with pytest.raises(ValueError, match="4 x 4 pixels is smaller"):
        windows.grid(chain, 4, 4)


def test_head_layer_rejects_a_window_without_features():
    with pytest.raises(ValueError, match="window must be larger, got 5 pixels"):
        windows.head_layer(LECTURE_NET, 5)


def test_parse_reads_kernel_stride_and_padding():
    assert parse("c5, p2,c3s2,p3s2p1") == (conv(5), pool(2), conv(3, 2), pool(3, 2, 1))
    assert parse("p3")[0].stride == 3


@pytest.mark.parametrize("word", ["", "x3", "c", "c0", "c3s", "5c", "c3p1s2", "c-3"])
def test_parse_names_the_invalid_word(word):
    with pytest.raises(ValueError, match=f"layers must be words such as .*, got '{word}'"):
        parse(f"c5,{word},p2")


@laws
@given(valid_chains, st.integers(1, 40), st.integers(0, 30), st.integers(1, 6))
def test_differences_are_empty_exactly_where_the_windows_coincide(features, window, more, stride):
    assume(windows.output_size(features, window))
    size = window + more
    chain = (*features, windows.head_layer(features, window))
    used = reference_windows.receptive_fields(chain, window)[0][1]
    sliding = [(start, start + used) for start in range(0, more + 1, stride)]
    reasons = windows.differences(features, window, size, stride)
    assert (reasons == ()) == (reference_windows.receptive_fields(chain, size) == sliding)


@pytest.mark.parametrize(
    "words, window, size, stride, reasons",
    [
        ("c5,p2", 14, 28, None, []),
        ("c5,p2", 14, 28, 2, []),
        ("c5,p2", 15, 17, None, []),  # one pixel is dropped by the floor, no window
        ("c5,p2", 15, 16, None, ["floor: the layers use 14 of the 15", "has 2 windows, sliding 1"]),
        ("c5,p2", 15, 28, None, ["floor: the layers use 14 of the 15", "has 8 windows, sliding 7"]),
        ("c5,p2,c3", 14, 28, 2, []),
        ("c5,p2,c3,p2", 16, 28, 2, ["steps by 2 pixels, .* multiply to 4", "4 windows, sliding 7"]),
        ("c5,p2,c3,p2", 16, 28, 4, []),
        ("c5p2,p2", 14, 28, None, ["padding: 2 pixels"]),
        ("c5p2,p2", 14, 14, None, []),
    ],
)
def test_differences_give_reasons(words, window, size, stride, reasons):
    found = windows.differences(parse(words), window, size, stride)
    assert len(found) == len(reasons)
    assert all(re.search(pattern, reason) for pattern, reason in zip(reasons, found, strict=True))


def test_window_boxes_are_ordered_by_row_and_column():
    grid = Grid(window=14, stride=2, rows=2, columns=3, offset=-1)
    corners = windows.window_boxes(grid)
    chex.assert_shape(corners, (2, 3, 4))
    chex.assert_type(corners, jnp.float32)
    np.testing.assert_array_equal(corners[0, 0], [-1, -1, 13, 13])
    np.testing.assert_array_equal(corners[1, 2], [3, 1, 17, 15])


def random_image(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def test_extract_matches_the_reference():
    image = random_image(19, 22, 3)
    grid = windows.grid((conv(7, 3),), 19, 22)
    expected = reference_windows.cut_windows(image, 7, 3)
    assert expected.shape == (5, 6, 7, 7, 3)
    np.testing.assert_array_equal(windows.extract(image, grid), expected)


def test_extract_pads_with_zeros():
    image = random_image(9, 11, 2)
    grid = windows.grid(parse("c3p1,c3s2p1"), 9, 11)
    around = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    np.testing.assert_array_equal(
        windows.extract(image, grid), reference_windows.cut_windows(around, 5, 2)
    )


def test_extract_under_jit_and_vmap():
    images = random_image(3, 20, 20, 1)
    grid = windows.grid(LECTURE_NET, 20, 20)
    plain = np.stack([windows.extract(image, grid) for image in images])
    batched = jax.jit(jax.vmap(windows.extract, (0, None)), static_argnums=1)
    chex.assert_trees_all_equal(plain, batched(images, grid))


def random_boxes(count):
    """Boxes [count, 4] with sides of 1 to 20 pixels, some beyond a canvas of 32."""
    draw = np.random.default_rng(0)
    start, side = draw.uniform(-10, 32, (count, 2)), draw.uniform(1, 20, (count, 2))
    return np.concatenate([start, start + side], axis=-1).astype(np.float32)


def test_window_units_round_trip():
    box = random_boxes(9)[:, None, None]
    corners = windows.window_boxes(Grid(14, 2, 10, 10))[None]
    there = windows.to_window(box, corners)  # [9, 10, 10, 4]
    back = windows.from_window(there, corners)
    chex.assert_trees_all_close(back, jnp.broadcast_to(box, back.shape), atol=1e-5)


def test_a_window_in_its_own_units_is_the_unit_square():
    corners = windows.window_boxes(Grid(14, 2, 3, 3))
    unit = jnp.broadcast_to(jnp.array([0.0, 0, 1, 1]), corners.shape)
    chex.assert_trees_all_equal(windows.to_window(corners, corners), unit)
    chex.assert_trees_all_equal(windows.from_window(unit, corners), corners)


encode_targets = jax.jit(jax.vmap(windows.encode_targets, (0, 0, None)), static_argnums=2)


@pytest.mark.parametrize("grid", [Grid(14, 2, 10, 10), Grid(9, 5, 5, 4)])
def test_encode_targets_matches_the_reference(grid):
    boxes = random_boxes(40)
    labels = np.arange(40) % 10
    expected = reference.encode_targets(boxes, labels, *grid[:4])
    targets = encode_targets(boxes, labels, grid)
    assert 0 < expected[..., 0].mean() < 1
    chex.assert_type(targets, jnp.float32)
    np.testing.assert_allclose(targets, expected, rtol=1e-5, atol=1e-6)


def test_encode_targets_treats_boxes_as_half_open():
    grid = Grid(window=4, stride=4, rows=1, columns=3)
    targets = encode_targets(np.array([[4.0, 0, 8, 4]]), np.array([7]), grid)
    expected = [[[[0] * 6, [1, 7, 0, 0, 1, 1], [0] * 6]]]  # the neighbors only touch
    np.testing.assert_array_equal(targets, expected)


def test_encode_targets_of_an_empty_box_are_zeros():
    empty = np.array([[0.0, 0, 0, 0], [5, 5, 5, 9], [8, 8, 6, 6]])
    assert not encode_targets(empty, np.array([7, 7, 7]), Grid(14, 2, 10, 10)).any()


def test_encode_targets_eager_jit_and_vmap_agree():
    grid = Grid(14, 2, 10, 10)
    boxes, labels = random_boxes(4), np.arange(4)
    plain = np.stack(
        [windows.encode_targets(*each, grid) for each in zip(boxes, labels, strict=True)]
    )
    batched = jax.vmap(windows.encode_targets, (0, 0, None))(boxes, labels, grid)
    chex.assert_trees_all_close(plain, batched, encode_targets(boxes, labels, grid), rtol=1e-6)
