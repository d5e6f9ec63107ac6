"""Operations of any JAX function, counted from its jaxpr."""

from jaxdet.flops.counter import DIRECTIONS, Counted, Step, count, feeds, live, place, tally, walk
from jaxdet.flops.rules import Count

__all__ = [
    "DIRECTIONS",
    "Count",
    "Counted",
    "Step",
    "count",
    "feeds",
    "live",
    "place",
    "tally",
    "walk",
]
