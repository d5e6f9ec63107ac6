"""Augmentation in plain loops."""

import numpy as np

from tests.reference import boxes as reference_boxes


def rotate_and_scale_digit(digit, angle, scale, side):
    """Digit [h, w] rotated by `angle` radians about the center of its foreground and scaled.

    Each pixel of the result [side, side] is interpolated where it comes from.
    """
    x0, y0, x1, y1 = reference_boxes.mask_to_box(digit)
    middle = np.array([x0 + x1, y0 + y1]) / 2
    patch = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            x, y = (np.array([column, row]) + 0.5 - side // 2 - middle % 1) / scale
            from_x = middle[0] + np.cos(angle) * x - np.sin(angle) * y - 0.5
            from_y = middle[1] + np.sin(angle) * x + np.cos(angle) * y - 0.5
            patch[row, column] = _bilinear(digit, from_y, from_x)
    return patch


def _bilinear(image, row, column):
    """Bilinear interpolation of the four pixels around a position; 0 outside the image."""
    height, width = image.shape
    top, left = int(np.floor(row)), int(np.floor(column))
    near = [(y, x) for y in (top, top + 1) for x in (left, left + 1)]
    inside = [(y, x) for y, x in near if 0 <= y < height and 0 <= x < width]
    return sum(image[y, x] * (1 - abs(row - y)) * (1 - abs(column - x)) for y, x in inside)


def mixup(rows, weights):
    """Rows [B, ...] with weights [B], mixed with the next row, the last with the first."""
    count = len(rows)
    return [weights[i] * rows[i] + (1 - weights[i]) * rows[(i + 1) % count] for i in range(count)]


def cutout(image, draw, fill, size):
    """Image [H, W, C] with filled rectangles; draw [n, 4]: centers and sides, in [0, 1]."""
    image, (height, width, _) = np.array(image), image.shape
    for down, across, tall, wide in draw:
        for row, column in np.ndindex(height, width):
            near = abs(row + 0.5 - down * height) < tall * height * size / 2
            if near and abs(column + 0.5 - across * width) < wide * width * size / 2:
                image[row, column] = fill
    return image


def shift(image, down, across):
    """Image [H, W, C] whose pixels come from `down` rows below, `across` columns to the right."""
    out, (height, width, _) = np.zeros_like(image), image.shape
    for row, column in np.ndindex(height, width):
        if 0 <= row + down < height and 0 <= column + across < width:
            out[row, column] = image[row + down, column + across]
    return out


def rotate(image, angle):
    """Image [H, W, C] rotated counter-clockwise by `angle` radians about its center."""
    height, width = image.shape[:2]
    out = np.full_like(image, 0.5)
    for r in range(height):
        for c in range(width):
            x, y = c + 0.5 - width / 2, r + 0.5 - height / 2
            column = np.cos(angle) * x - np.sin(angle) * y + width / 2 - 0.5
            row = np.sin(angle) * x + np.cos(angle) * y + height / 2 - 0.5
            out[r, c] = _bilinear_on_gray(image, row, column)
    return out


def scale_translate(image, scale, offset):
    """Image [H, W, C] with pixel (r, c) moved to (r, c) * scale + offset."""
    height, width = image.shape[:2]
    out = np.full_like(image, 0.5)
    for r in range(height):
        for c in range(width):
            row = (r + 0.5 - offset[0]) / scale[0]
            column = (c + 0.5 - offset[1]) / scale[1]
            if 0 <= row <= height and 0 <= column <= width:
                row, column = np.clip(row - 0.5, 0, height - 1), np.clip(column - 0.5, 0, width - 1)
                out[r, c] = _bilinear_on_gray(image, row, column)
    return out


def _bilinear_on_gray(image, row, column):
    """Bilinear interpolation of the four pixels around a position; gray outside the image."""
    top, left = int(np.floor(row)), int(np.floor(column))
    value = np.zeros(image.shape[2])
    for r in (top, top + 1):
        for c in (left, left + 1):
            inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
            near = (1 - abs(row - r)) * (1 - abs(column - c))
            value += near * (image[r, c] if inside else 0.5)
    return value
