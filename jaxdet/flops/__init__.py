"""Operation counts of any JAX function, read from its jaxpr."""

from jaxdet.flops.counter import (
    DIRECTIONS,
    FlopReport,
    ScopedEquation,
    count,
    count_jaxpr,
    live_equations,
    scope,
    scope_inputs,
    walk,
)
from jaxdet.flops.rules import OpCounts

__all__ = [
    "DIRECTIONS",
    "FlopReport",
    "OpCounts",
    "ScopedEquation",
    "count",
    "count_jaxpr",
    "live_equations",
    "scope",
    "scope_inputs",
    "walk",
]
