"""Operations of any JAX function, counted from its jaxpr."""

from jaxdet.flops.counter import (
    DIRECTIONS,  # noqa: F401
    Counted,  # noqa: F401
    Step,  # noqa: F401
    count,  # noqa: F401
    feeds,  # noqa: F401
    live,  # noqa: F401
    place,  # noqa: F401
    tally,  # noqa: F401
    walk,  # noqa: F401
)
from jaxdet.flops.rules import Count  # noqa: F401

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
