"""Precisions of matrix products and convolutions, in JAX and PyTorch, and the device's peaks.

- "float32": no TF32.
- "tf32": TF32 for products of float32 arrays, on a GPU that has it; JAX's default there.
- "bfloat16": layers in bfloat16 with float32 parameters, and TF32 for products of float32 arrays.

`benchmarks.torch_refs.backend` sets the precision of PyTorch.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdet.profiling import roofline

Precision = Literal["float32", "tf32", "bfloat16"]
MATMUL = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "tensorfloat32"}


def set_matmul(precision: Precision) -> None:
    """Set the precision of products of float32 arrays in this process."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])


def dtype(precision: Precision) -> jnp.dtype:
    """The data type in which layers compute."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def matmul_peak(precision: Precision) -> float:
    """Additions and multiplications per second of a large matrix product."""
    with jax.default_matmul_precision(MATMUL[precision]):
        return roofline.matmul_peak(dtype=dtype(precision))
