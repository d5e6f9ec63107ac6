"""Learning-rate schedules in plain loops."""

import numpy as np


def cosine_restarts(rate, cycle, grow, count):
    """Learning rates of `count` updates: cosines to 0, of `cycle` updates, then `grow` as many."""
    rates, done = [], 0
    for _ in range(count):
        rates.append(rate * (1 + np.cos(np.pi * done / cycle)) / 2)
        done += 1
        if done == cycle:
            done, cycle = 0, cycle * grow
    return rates


def reduce_on_plateau(values, drop, patience):
    """What is left of a rate after each of some values, of which less is better."""
    best, waited, scale, scales = np.inf, 0, 1.0, []
    for value in values:
        if value < (1 - 1e-4) * best:
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            waited, scale = 0, scale * drop
        scales.append(scale)
    return scales
