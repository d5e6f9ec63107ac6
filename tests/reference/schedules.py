"""Learning-rate schedules in plain loops."""

import numpy as np


def cosine_restarts(rate, period, growth, count):
    """Rates of `count` updates: cosines to 0 over `period` updates, then `growth` times as many."""
    rates, done = [], 0
    for _ in range(count):
        rates.append(rate * (1 + np.cos(np.pi * done / period)) / 2)
        done += 1
        if done == period:
            done, period = 0, period * growth
    return rates


def reduce_on_plateau(values, decay, patience):
    """Factor of the learning rate after each of some values, of which lower ones are better."""
    best, waited, scale, scales = np.inf, 0, 1.0, []
    for value in values:
        if value < (1 - 1e-4) * best:
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            waited, scale = 0, scale * decay
        scales.append(scale)
    return scales
