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

# At level 3 of code generation, the default, compiling a step of ResNet18 at 64 pixels takes 40%
# more processor time than at level 2 (18.5 s instead of 13.2 s), and the step is no faster.
# Evaluations keep level 3, because level 2 may round the last digit of their scores differently.
LEVEL = "xla_backend_optimization_level"
TRAINING_OPTIONS = {**OPTIONS, LEVEL: "2"}


def jit(fn: Callable, *, training: bool = False, **options: Any) -> Callable:
    """`jax.jit(fn, **options)` with `compiler_options(training=training)`.

    JAX accepts such options for an outermost function only, not for one that is called within
    another jitted function.
    """
    return jax.jit(fn, compiler_options=compiler_options(training=training), **options)


def compiler_options(*, training: bool = False) -> dict[str, str] | None:
    """Options for a CPU with which convolutions are faster, and training steps compile sooner.

    Options that `XLA_FLAGS` set are left out.  None on other devices, and also if XLA does not know
    the options.
    """
    if jax.default_backend() != "cpu" or not _is_known():
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    options = TRAINING_OPTIONS if training else OPTIONS
    return {name: value for name, value in options.items() if name not in flags} or None


@cache
def _is_known() -> bool:
    """Whether XLA accepts `TRAINING_OPTIONS`, tested by compiling a program with them."""
    try:
        jax.jit(lambda: 0, compiler_options=TRAINING_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
