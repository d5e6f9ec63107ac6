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


def masked_means(
    terms: dict[str, Array], batch: Batch, context: StepContext, factors: Array | None = None
) -> dict[str, Array]:
    """This device's contribution to the means of per-image terms [B] over the real rows.

    factors: weights [B] of the images in the means; None: all are equal.
    """
    if factors is None:
        rows = real_rows(batch, context)
        return {name: values @ batch["real"] / rows for name, values in terms.items()}
    weights = batch["real"] * factors
    total = parallel.psum(weights.sum(), context.axis)
    total = jnp.where(total > 0, total, 1.0)
    return {name: values @ weights / total for name, values in terms.items()}


def class_factors(
    targets: Array, class_weights: tuple[float, ...], context: StepContext
) -> Array | None:
    """In training, the mean class weight [B] of target probabilities [B, K]; else None.

    class_weights: factors of the losses of each class; (): none.
    """
    if not (class_weights and context.train):
        return None
    return targets @ jnp.asarray(class_weights, jnp.float32)
