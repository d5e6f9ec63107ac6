"""Batch norm folded into the convolution before it, for inference.

    norms = find_norms(partial(net.apply, train=False), variables, images)
    folded = fold_batch_norm(variables, norms)
    net.apply(folded, images)  # the same up to rounding, without norms

At inference, batch norm uses its running statistics, and so is an affine map of each channel.  Its
scale is multiplied into the kernel of the convolution before it, and its offset becomes the bias of
that convolution.  Modules ask `is_folded` whether their variables are folded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxdet.types import Array, Tree

Norms = Mapping[tuple[str, ...], float]  # path of a convolution -> epsilon of the norm after it

_recorded: ContextVar[dict[tuple[str, ...], float] | None] = ContextVar("norms", default=None)


def fold_batch_norm(variables: Tree, norms: Norms) -> Tree:
    """Variables in which the norms after convolutions are folded, as float32 arrays on the host.

    norms: from `find_norms`; an empty mapping folds nothing.
    """
    rest = dict(jax.device_get(variables))
    flatten = partial(traverse_util.flatten_dict, keep_empty_nodes=True)
    params: dict[tuple, Any] = flatten(rest.pop("params", {}))
    stats: dict[tuple, Any] = flatten(rest.pop("batch_stats", {}))
    for path, epsilon in norms.items():
        norm = (*path[:-1], f"{path[-1]}_norm")
        if (*norm, "var") not in stats:  # of a network that gets only a part of the variables
            continue
        scale = params.pop((*norm, "scale"), np.float32(1))
        offset = params.pop((*norm, "bias"), np.float32(0))
        mean, variance = stats.pop((*norm, "mean")), stats.pop((*norm, "var"))
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        bias = params.get((*path, "bias"), np.float32(0))
        params[*path, "kernel"] = params[*path, "kernel"] * factor
        params[*path, "bias"] = (bias - mean) * factor + offset
    kept = {"params": params} | ({"batch_stats": stats} if stats else {})
    return rest | {kind: traverse_util.unflatten_dict(own) for kind, own in kept.items()}


def find_norms(fn: Callable, variables: Tree, images: Array) -> Norms:
    """The norms that can be folded in `fn(variables, images)`, whose arguments may be abstract."""
    with recorded_norms() as norms:
        jax.eval_shape(fn, variables, images)
    return norms


@contextmanager
def recorded_norms() -> Iterator[Norms]:
    """A context that records, in the mapping that it gives, the norms of networks traced inside."""
    found: dict[tuple[str, ...], float] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def is_folded(module: nn.Module, name: str, epsilon: float) -> bool:
    """Whether the norm after the convolution `name` of a module is folded into the convolution.

    epsilon: of the norm.
    """
    if (norms := _recorded.get()) is not None:
        norms[*module.path, name] = epsilon
    scope: Any = module.scope
    known = [scope.has_variable(kind, f"{name}_norm") for kind in ("params", "batch_stats")]
    return not module.is_initializing() and not any(known)
