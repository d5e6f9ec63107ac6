"""One file a task: functions that take a network and return a `types.Task`."""

from functools import partial

import jax.numpy as jnp

from jaxdet.training import parallel


def forward(key, net, variables, images, at, **extra):
    """Outputs of `net`, and its batch statistics after them: (outputs, stats).

    `extra` goes to the network.
    In training the statistics are those of the whole batch, over all devices, and dropout is on;
    in evaluation the running statistics are used and returned.
    """
    before = variables.get("batch_stats", {})
    if not at.train:
        return net.apply(variables, images, train=False, **extra), before
    run = partial(net.clone(axis_name=at.axis).apply, mutable=["batch_stats"], **extra)
    outputs, changed = run(variables, images, train=True, rngs={"dropout": key})
    return outputs, changed.get("batch_stats", {})


def real_rows(batch, at):
    """How many rows of the global batch are real, at least 1: what means are divided by."""
    return jnp.maximum(parallel.total(batch["real"].sum(), at.axis), 1.0)
