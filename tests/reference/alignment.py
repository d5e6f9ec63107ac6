"""The similarity transform of Umeyama 1991, by singular values."""

import numpy as np


def similarity_transform(source, target):
    """Matrix [2, 3] of the rotation, scaling and translation of points [N, 2] nearest to others."""
    source, target = np.float64(source), np.float64(target)
    source_mean, target_mean = source.mean(0), target.mean(0)
    centered = source - source_mean
    u, values, v = np.linalg.svd((target - target_mean).T @ centered)
    signs = [1, np.sign(np.linalg.det(u) * np.linalg.det(v))]  # no reflection
    rotation = u @ np.diag(signs) @ v
    scale = (values * signs).sum() / (centered**2).sum()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])
