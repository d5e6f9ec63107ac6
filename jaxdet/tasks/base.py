"""The forward pass, and means over the real rows of a batch, as all tasks compute them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdet.training import parallel
from jaxdet.types import Array, Batch, StepContext, Tree


def forward(
    key: jax.Array,
    net: nn.Module,
    variables: Tree,
    images: Array,
    context: StepContext,
    **extra: Any,
) -> tuple[Any, Tree]:
    """(outputs, running statistics) of `net` for images [B, H, W, C].

    In training, dropout is on, and batch norm uses the statistics of the batch of all devices and
    updates the running statistics.  In evaluation the running statistics are used and returned
    unchanged.

    extra: further keyword arguments of the network.
    """
    before = variables.get("batch_stats", {})
    if not context.train:
        return net.apply(variables, images, train=False, **extra), before
    synchronized = net.clone(axis_name=context.axis)
    outputs, changed = synchronized.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}, **extra
    )
    return outputs, changed.get("batch_stats", {})


def real_rows(batch: Batch, context: StepContext) -> Array:
    """The divisor of means: the number of real rows in the batch of all devices, at least 1."""
    return jnp.maximum(parallel.psum(batch["real"].sum(), context.axis), 1.0)


def masked_means(terms: dict[str, Array], batch: Batch, context: StepContext) -> dict[str, Array]:
    """This device's contribution to the means of per-image terms [B] over the real rows."""
    rows = real_rows(batch, context)
    return {name: values @ batch["real"] / rows for name, values in terms.items()}
