"""Pooling, and the taps of a window, in plain loops."""

import numpy as np


def count_taps(sizes, windows, strides, pads, bases, dilations):
    """(taps on pixels, taps on padding) of each place of a window that slides over an image.

    Everything is a pair, rows and columns.  `bases` spread the pixels, and the padding that goes
    on with them, with holes in between, on which a tap is neither.
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
    """Where the taps of each window lie along an axis."""
    start, end = -pads[0], (size - 1) * base + 1 + pads[1]
    while start + (window - 1) * dilation < end:
        yield [start + tap * dilation for tap in range(window)]
        start += stride


def _tap_kind(place, sizes, bases):
    """What there is at a place [2] of a spread and padded image."""
    if any(p % base for p, base in zip(place, bases, strict=True)):
        return "hole"
    last = [(size - 1) * base for size, base in zip(sizes, bases, strict=True)]
    return "pixel" if all(0 <= p <= q for p, q in zip(place, last, strict=True)) else "padding"


def max_pool_gradient(x, g, kernel, stride, padding):
    """Gradient [B, H, W, C] by the image of a max pool; the largest of a window share evenly."""
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
    """Means [B, side, side, C] of x [B, H, W, C]: of the pixels that each part of the map meets."""
    x = np.asarray(x, float)
    rows, columns = (_bins(length, side) for length in x.shape[1:3])
    return np.stack(
        [np.stack([x[:, r][:, :, c].mean((1, 2)) for c in columns], 1) for r in rows], 1
    )


def _bins(length, count):
    """The pixels of a line that each of `count` equal parts of it covers, if only in part."""
    return [
        [p for p in range(length) if p * count < (i + 1) * length and (p + 1) * count > i * length]
        for i in range(count)
    ]
