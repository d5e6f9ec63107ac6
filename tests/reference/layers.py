"""Pooling, and the taps of sliding kernels, in plain loops."""

import numpy as np


def count_taps(sizes, windows, strides, pads, bases, dilations):
    """(taps on pixels, taps on padding) of each position of a window that slides over an image.

    Each argument is a pair, for rows and columns. `bases` dilate the image and its padding: taps on
    the holes in between count as neither.
    """
    axes = zip(sizes, windows, strides, pads, bases, dilations, strict=True)
    rows, columns = (list(_tap_positions(*axis)) for axis in axes)
    found = []
    for down in rows:
        for across in columns:
            kinds = [_tap_kind((y, x), sizes, bases) for y in down for x in across]
            found.append((kinds.count("pixel"), kinds.count("padding")))
    return found


def _tap_positions(size, window, stride, pads, base, dilation):
    """Positions of the taps of each window along an axis."""
    start, end = -pads[0], (size - 1) * base + 1 + pads[1]
    while start + (window - 1) * dilation < end:
        yield [start + tap * dilation for tap in range(window)]
        start += stride


def _tap_kind(place, sizes, bases):
    """Whether a position [2] of a dilated, padded image is a pixel, padding or a hole."""
    if any(p % base for p, base in zip(place, bases, strict=True)):
        return "hole"
    last = [(size - 1) * base for size, base in zip(sizes, bases, strict=True)]
    return "pixel" if all(0 <= p <= q for p, q in zip(place, last, strict=True)) else "padding"


def max_pool_gradient(x, g, kernel, stride, padding):
    """Gradient [B, H, W, C] of a max pool for its input; equal maxima share it evenly."""
    x, out = np.asarray(x, float), np.zeros(np.shape(x))
    batch, height, width, channels = x.shape
    for b, r, c, d in np.ndindex(*np.shape(g)):
        places = [
            (b, i, j, d)
            for i in range(r * stride - padding, r * stride - padding + kernel)
            for j in range(c * stride - padding, c * stride - padding + kernel)
            if 0 <= i < height and 0 <= j < width
        ]
        largest = [place for place in places if x[place] == max(x[p] for p in places)]
        for place in largest:
            out[place] += g[b, r, c, d] / len(largest)
    return out


def adaptive_average_pool(x, side):
    """Means [B, side, side, C] of x [B, H, W, C] over the pixels that each bin touches."""
    x = np.asarray(x, float)
    rows, columns = (_bins(length, side) for length in x.shape[1:3])
    return np.stack(
        [np.stack([x[:, r][:, :, c].mean((1, 2)) for c in columns], 1) for r in rows], 1
    )


def _bins(length, count):
    """Pixels of a line that each of `count` equal bins covers, fully or in part."""
    return [
        [p for p in range(length) if p * count < (i + 1) * length and (p + 1) * count > i * length]
        for i in range(count)
    ]
