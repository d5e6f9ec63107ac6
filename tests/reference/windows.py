"""Sliding windows in plain loops."""

import numpy as np


def receptive_fields(chain, size):
    """(first pixel, one past the last) read by each output of a chain, padding included.

    Walks the number of outputs forwards, and the set of pixels that an output reads backwards.
    """
    for _, kernel, stride, padding in chain:
        size = len(range(-padding, size + padding - kernel + 1, stride)) if size else 0
    return [_receptive_field(chain, output) for output in range(size)]


def _receptive_field(chain, output):
    """First pixel, and one past the last, read by one output."""
    pixels = {output}
    for _, kernel, stride, padding in reversed(chain):
        pixels = {p * stride - padding + tap for p in pixels for tap in range(kernel)}
    return min(pixels), max(pixels) + 1


def cut_windows(image, window, stride):
    """Windows [rows, columns, window, window, C] of an image [H, W, C], one slice at a time."""
    height, width = image.shape[:2]
    return np.array(
        [
            [
                image[top : top + window, left : left + window]
                for left in range(0, width - window + 1, stride)
            ]
            for top in range(0, height - window + 1, stride)
        ]
    )


def sliding_window_loss(raw, target, mask_loss_by="both"):
    """Terms of the loss, summed over windows: raw outputs [R, C, 15], targets [R, C, 6]."""
    detection = classification = regression = 0.0
    for out, (present, label, *box) in zip(raw.reshape(-1, 15), target.reshape(-1, 6), strict=True):
        p = 1 / (1 + np.exp(-out[0]))
        detection -= np.log(p if present == 1 else 1 - p)
        if present == 1 and (p > 0.5 or mask_loss_by == "truth"):
            classification -= out[1 + int(label)] - np.log(np.exp(out[1:11]).sum())
            regression += sum((a - b) ** 2 for a, b in zip(out[11:], box, strict=True)) / 4
    return {"detection": detection, "classification": classification, "regression": regression}


def best_window(raw, corners, product=False):
    """(label, box) of the window with the highest class probability; raw [R, C, 15].

    product: multiply it with the probability of detection. Of equal windows, the first counts.
    """
    best = None
    for out, window in zip(raw.reshape(-1, 15), corners.reshape(-1, 4), strict=True):
        score = max(out[1:11]) - np.log(np.exp(out[1:11]).sum())
        if product:
            score -= np.log1p(np.exp(-out[0]))
        if best is None or score > best[0]:
            side = window[2] - window[0]
            box = [window[i % 2] + side * out[11 + i] for i in range(4)]
            best = score, int(np.argmax(out[1:11])), box
    return best[1:]
