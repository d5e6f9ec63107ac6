"""Boxes of original images, placed on the inputs of the network."""

import numpy as np

from jaxdet.ops import boxes as box_ops
from jaxdet.reports.examples import SplitImages
from jaxdet.tasks.detect import boxes_to_original

BOXES = np.float32([[1, 2, 30, 40], [5, 5, 6, 9]])


def test_boxes_on_inputs_are_those_that_the_task_maps_back():
    to_original = np.float32([[2, 4, -10, 3], [0.5, 0.5, 0, 0]])
    images = SplitImages(["a", "b"], np.zeros((2, 8, 8, 3)), to_original)
    placed = np.stack([images.to_input(i, BOXES) for i in range(2)])
    back = boxes_to_original(placed.astype(np.float32), to_original)
    np.testing.assert_allclose(back, np.stack([BOXES, BOXES]), atol=1e-5)
    assert images.to_input(0, BOXES[:0]).shape == (0, 4)
    np.testing.assert_allclose(box_ops.area(placed[1]), 4 * box_ops.area(BOXES), rtol=1e-6)


def test_images_without_a_letterbox_keep_their_boxes():
    images = SplitImages(["a"], np.zeros((1, 8, 8, 1)), None)
    np.testing.assert_array_equal(images.to_input(0, BOXES), BOXES)
