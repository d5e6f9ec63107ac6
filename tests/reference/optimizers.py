"""Steps of optimizers as PyTorch documents them, one array at a time, in float64.

`torch.optim.Adam`, `SGD` (with momentum) and `RMSprop` of PyTorch 2.13 gave the same numbers when
this was written.
"""

import numpy as np


def steps(name, start, gradients, *, lr, momentum, beta2, weight_decay, eps=1e-8):
    """The array after a step for each gradient, with an L2 penalty of `weight_decay`."""
    value, first, second = np.array(start, float), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        gradient = gradient + weight_decay * value
        if name == "momentum":
            first = momentum * first + gradient
            step = first
        elif name == "rmsprop":
            second = beta2 * second + (1 - beta2) * gradient**2
            first = momentum * first + gradient / (np.sqrt(second) + eps)
            step = first
        elif name == "adam":
            first = momentum * first + (1 - momentum) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            step = first / (1 - momentum**t) / (np.sqrt(second / (1 - beta2**t)) + eps)
        value = value - lr * step
    return value
