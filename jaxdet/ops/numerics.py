"""Numerical helpers shared by the other ops."""

import jax
import jax.numpy as jnp

from jaxdet.types import Array


def as_float32(x: Array) -> jax.Array:
    """An array of any shape as float32; float64 stays float64.

    Lengths and areas are computed in this precision: bfloat16 cannot represent odd integers above
    256.
    """
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def safe_divide(numerator: Array, denominator: Array, eps: float = 0.0) -> jax.Array:
    """`numerator / (denominator + eps)`, broadcasting; 0 wherever `denominator` is not positive.

    Values and gradients are finite everywhere.
    """
    positive = denominator > 0
    return jnp.where(positive, numerator / (jnp.where(positive, denominator, 1) + eps), 0)
