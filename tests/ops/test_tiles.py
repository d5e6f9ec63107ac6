from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.ops import augment, nms, tiles
from jaxdet.ops.tiles import Tiling

TILING = Tiling(2, 3, 0.25, 64, 128)  # steps of 64 * .75 -> 64 or 32 (48 / 32 = 1.5 -> 2), and 96


def test_tiles_cover_the_canvas_and_overlap_by_multiples_of_the_stride():
    assert TILING.steps == (64, 96) and TILING.canvas == (128, 320)
    found = tiles.tile_boxes(TILING)
    assert found.shape == (6, 4)
    np.testing.assert_array_equal(
        found[[0, 1, 5]], [[0, 0, 128, 64], [96, 0, 224, 64], [192, 64, 320, 128]]
    )
    covered = np.zeros(TILING.canvas, bool)
    for x0, y0, x1, y1 in found.astype(int):
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    assert Tiling(1, 1, 0.2, 64, 96).canvas == (64, 96)
    assert Tiling(3, 3, 0.9, 64, 64).steps == (32, 32)  # never the same place twice


def test_an_image_has_the_smallest_grid_that_covers_it():
    tiling = TILING._replace(rows=None, columns=None)
    sides = {(1, 1): (1, 1), (64, 128): (1, 1), (65, 128): (2, 1), (128, 225): (2, 3)}
    for size, grid in sides.items():
        found = tiling.covering(*size)
        assert found[:2] == grid and found[2:] == TILING[2:]
        traced = jax.jit(tiling.extent)(np.array(size))
        np.testing.assert_array_equal(traced, found.canvas)
    assert TILING.covering(1, 1) == TILING


def test_shrinking_a_part_equals_resizing_that_part():
    image = np.random.default_rng(0).random((40, 60, 3)).astype(np.float32)
    for rows, columns in ((40, 60), (31, 17), (8, 12)):
        found = jax.jit(partial(tiles.shrink, shape=(16, 24)))(image, np.array([rows, columns]))
        expected = jax.image.resize(image[:rows, :columns], (16, 24, 3), "linear")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cut_takes_the_pixels_of_every_tile():
    image = np.random.default_rng(0).random((*TILING.canvas, 3)).astype(np.float32)
    found = tiles.cut(image, tiles.corners(TILING), (64, 128))
    for part, (x0, y0, x1, y1) in zip(found, tiles.tile_boxes(TILING).astype(int), strict=True):
        np.testing.assert_array_equal(part, image[y0:y1, x0:x1])


def test_boxes_at_inner_borders_are_cut():
    regions = tiles.tile_boxes(TILING)[:2]  # neighbors: 0..128 and 96..224
    boxes = np.float32([[90, 5, 128, 20], [90, 5, 124, 20], [0, 0, 20, 64], [96, 0, 110, 30]])
    owner = regions[[0, 0, 0, 1]]
    found = tiles.is_cut(boxes, owner, TILING.canvas)
    np.testing.assert_array_equal(
        found, [True, False, True, True]
    )  # the third: at the lower border
    whole = np.float32([[0, 0, 320, 128]])
    assert not tiles.is_cut(whole, whole, TILING.canvas).any()


REGIONS = np.float32([[0, 0, 100, 100], [80, 0, 180, 100], [0, 0, 180, 100]])  # and the whole


def merged(rows):
    """The boxes that NMS keeps of (box, score, label, tile), after merging."""
    boxes, scores, labels, tile = map(np.array, zip(*rows, strict=True))
    boxes, scores = np.float32(boxes), np.float32(scores)
    cut = tiles.is_cut(boxes, REGIONS[tile], (100, 180))
    boxes, scores = jax.jit(tiles.merge_cut)(boxes, scores, labels, tile, REGIONS, cut)
    kept = nms.nms(boxes, scores, labels, max_detections=len(rows))
    return np.asarray(kept.boxes)[kept.valid].tolist(), np.asarray(kept.scores)[kept.valid].tolist()


LEFT, RIGHT, WHOLE = [50, 10, 100, 40], [80, 11, 140, 40], [50, 10, 140, 40]


def test_parts_of_an_object_become_one_box():
    boxes, scores = merged([(LEFT, 0.6, 0, 0), (RIGHT, 0.8, 0, 1)])
    assert boxes == [WHOLE] and scores == pytest.approx([0.8])


def test_a_part_gives_way_to_the_whole_object_of_another_tile():
    small, part = [84, 10, 118, 40], [84, 10, 100, 40]
    boxes, scores = merged([(part, 0.9, 0, 0), (small, 0.7, 0, 1)])
    assert boxes == [small] and scores == pytest.approx([0.7])
    boxes, _ = merged([(LEFT, 0.9, 0, 0), (RIGHT, 0.8, 0, 1), (WHOLE, 0.5, 0, 2)])
    assert boxes == [WHOLE]
    boxes, _ = merged([(part, 0.9, 0, 0), (small, 0.1, 0, 1)])  # too unsure
    assert boxes == [part, small]


@pytest.mark.parametrize(
    "rows",
    [
        [(LEFT, 0.6, 0, 0), (RIGHT, 0.8, 1, 1)],  # of two classes
        [(LEFT, 0.6, 0, 0), ([80, 60, 140, 90], 0.8, 0, 1)],  # at different heights
        [([10, 10, 60, 40], 0.6, 0, 0), ([82, 10, 120, 40], 0.8, 0, 1)],  # whole in both tiles
        [(LEFT, 0.6, 0, 0), ([45, 10, 74, 40], 0.8, 0, 0)],  # in one tile
    ],
)
def test_other_boxes_stay_as_they_are(rows):
    boxes, scores = merged(rows)
    assert sorted(boxes) == sorted(row[0] for row in rows)
    assert sorted(scores) == pytest.approx(sorted(row[1] for row in rows))


def test_parts_in_a_row_of_tiles_become_one_box():
    regions = np.float32([[80 * i, 0, 80 * i + 100, 100] for i in range(4)])
    boxes = np.float32(
        [[60, 20, 100, 50], [80, 20, 180, 50], [160, 20, 260, 50], [240, 20, 300, 50]]
    )
    tile, scores = np.arange(4), np.float32([0.5, 0.6, 0.7, 0.4])
    cut = np.array([True] * 4)
    found, _ = jax.jit(tiles.merge_cut)(boxes, scores, np.zeros(4, int), tile, regions, cut)
    np.testing.assert_array_equal(found, [[60, 20, 300, 50]] * 4)


def test_a_random_tile_is_one_of_the_tiles_with_the_boxes_in_it():
    image = np.random.default_rng(0).random((*TILING.canvas, 3)).astype(np.float32)
    boxes, regions = np.float32([[100, 20, 150, 50]]), tiles.tile_boxes(TILING)
    sample = augment.Sample(image, boxes, np.zeros(1, int), np.ones(1, bool), np.zeros(1, bool))
    keys = jax.random.split(jax.random.key(0), 40)
    one = partial(augment.random_tile, sample=sample, regions=regions)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))
    parts, seen = np.asarray(tiles.cut(image, tiles.corners(TILING), (64, 128))), set()
    for part, box, valid in zip(found.image, found.boxes, found.valid, strict=True):
        (place,) = [i for i, cut in enumerate(parts) if (cut == part).all()]
        seen.add(place)
        x, y, *_ = regions[place]
        inside = np.clip(boxes[0] - [x, y, x, y], 0, [128, 64, 128, 64])
        np.testing.assert_allclose(box[0], inside)
        share = np.prod(inside[2:] - inside[:2]) / (50 * 30)
        assert bool(valid[0]) == (share > augment.MIN_VISIBLE)
    assert seen == set(range(6))
    possible = np.array([False, True, False, True, False, False])
    some = jax.jit(jax.vmap(lambda key: one(key, possible=possible).image))(keys)
    drawn = (np.asarray(some)[:, None] == parts[None]).all((2, 3, 4))
    np.testing.assert_array_equal(drawn.any(0), possible)
