"""One pure step on one device (`jit`) or on several (`pmap`): same numbers, same call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.errors import InputError
from jaxdet.types import Device, Tree

AXIS = "devices"


def local_devices(count: int = 0) -> list[Device]:
    """The first `count` devices of this machine; 0 means all of them."""
    available = jax.local_devices()
    if not 0 <= count <= len(available):
        raise InputError(
            f"--devices must be 1 to {len(available)}, the {available[0].platform} devices of this "
            f"machine, or 0 for all, got {count}"
        )
    return available[: count or None]


def check_batch(batch: int, devices: Sequence[Device], option: str = "--batch") -> None:
    """Raise InputError unless the devices can share a batch equally."""
    if batch < 1 or batch % len(devices):
        raise InputError(
            f"{option} must be a positive multiple of {len(devices)}, the number of devices, got "
            f"{batch}; --devices chooses another number"
        )


def replicate(tree: Tree, devices: Sequence[Device]) -> Tree:
    """Arrays copied whole to every device; do this once, before the loop."""
    mesh = Mesh(np.array(devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def compile_step(
    step: Callable,
    devices: Sequence[Device],
    *,
    replicated: int,
    out_axes: int | tuple[int | None, ...] | None = None,
    donate: tuple[int, ...] = (),
) -> Callable:
    """`step(*args, axis=)` compiled for the devices.

    The first `replicated` arguments are the same on every device; the last one is a tree of rows
    [B, ...] that the devices share.  `out_axes` is as in `pmap`: None for replicated results, 0 for
    rows, which several devices return as [devices, B / devices, ...] (`unshard` them on the host).
    """
    if len(devices) == 1:
        return jax.jit(partial(step, axis=None), donate_argnums=donate)

    @partial(
        jax.pmap,
        axis_name=AXIS,
        in_axes=(None,) * replicated + (0,),
        out_axes=out_axes,
        donate_argnums=donate,
        devices=devices,
    )
    def parallel_step(*args):
        return step(*args, axis=AXIS)

    def call(*args):
        return parallel_step(*args[:replicated], shard(args[replicated], len(devices)))

    return call


def shard(rows: Tree, count: int) -> Tree:
    """Rows [B, ...] of a tree as [count, B / count, ...], in the same order."""
    return jax.tree.map(lambda r: r.reshape(count, len(r) // count, *r.shape[1:]), rows)


def unshard(rows: Tree, count: int) -> Tree:
    """Rows [count, b, ...] of a tree of host arrays as [B, ...]; unchanged if `count` is 1."""
    return rows if count == 1 else jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), rows)


def psum(tree: Tree, axis: str | None) -> Tree:
    """The sum of every leaf over the device axis; without an axis, the tree itself."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def row_indices(count: int, axis: str | None) -> jax.Array:
    """Positions in the global batch of this device's `count` rows, [count] int32."""
    return rank(axis) * count + jnp.arange(count)


def rank(axis: str | None) -> Any:
    """The index of this device along the device axis; 0 without an axis."""
    return 0 if axis is None else jax.lax.axis_index(axis)
