"""Options with which XLA compiles programs for a CPU."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# YNNPACK computes matrix products and sums, but not convolutions, whose gradients XLA's own code
# computes up to four times faster, see `benchmarks.train_step`.
YNN_FUSION = "xla_cpu_experimental_ynn_fusion_type"
OPTIONS = {YNN_FUSION: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def jit(fn: Callable, **options: Any) -> Callable:
    """`jax.jit(fn, **options)` with `compiler_options()`.

    JAX accepts such options for an outermost function only, not for one that is called within
    another jitted function.
    """
    return jax.jit(fn, compiler_options=compiler_options(), **options)


def compiler_options() -> dict[str, str] | None:
    """Options that make convolutions on a CPU faster, or None.

    None on other devices, and also if `XLA_FLAGS` sets the option or XLA does not know it.
    """
    own_choice = YNN_FUSION in os.environ.get("XLA_FLAGS", "")
    return OPTIONS if jax.default_backend() == "cpu" and not own_choice and _is_known() else None


@cache
def _is_known() -> bool:
    """Whether XLA accepts `OPTIONS`, tested by compiling a program with them."""
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
