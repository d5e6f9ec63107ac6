"""One pure step on one device (`jit`) or on several (`pmap`): same numbers, same call."""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.errors import InputError

AXIS = "devices"


def devices(count=0):
    """The first `count` local devices; 0 takes them all."""
    found = jax.local_devices()
    if not 0 <= count <= len(found):
        raise InputError(
            f"--devices {count}: this machine has {len(found)} {found[0].platform} device(s); "
            f"ask for 1 to {len(found)}, or 0 for all"
        )
    return found[: count or None]


def check_batch(batch, among, name="--batch"):
    """Refuse a batch that the devices cannot share equally."""
    if batch < 1 or batch % len(among):
        raise InputError(
            f"{name} {batch} cannot be shared equally by {len(among)} device(s); "
            f"take a positive multiple of {len(among)}, or set --devices"
        )


def replicate(tree, among):
    """Arrays copied whole to every device of `among`, once, before the loop."""
    mesh = Mesh(np.array(among), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def compile_step(step, among, *, whole, out_axes=None, donate=()):
    """`step(..., axis=)` compiled for the devices of `among`.

    The first `whole` arguments are replicated, the others are rows `[B, ...]` that the devices
    share; `out_axes` is as in `pmap`: None for replicated results, 0 for rows, which come back
    as [devices, B / devices, ...] from several devices (`unshard` them on the host).
    """
    if len(among) == 1:
        return jax.jit(partial(step, axis=None), donate_argnums=donate)

    @partial(
        jax.pmap,
        axis_name=AXIS,
        in_axes=(None,) * whole + (0,),
        out_axes=out_axes,
        donate_argnums=donate,
        devices=among,
    )
    def spread(*args):
        return step(*args, axis=AXIS)

    def call(*args):
        return spread(*args[:whole], shard(args[whole], len(among)))

    return call


def shard(rows, count):
    """Rows [B, ...] of a tree as [devices, B / devices, ...]; the order of rows is kept."""
    return jax.tree.map(lambda r: r.reshape(count, len(r) // count, *r.shape[1:]), rows)


def unshard(rows, count):
    """Rows [devices, b, ...] of a tree of host arrays as [B, ...]; unchanged from one device."""
    return rows if count == 1 else jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), rows)


def psum(tree, axis):
    """The sum over devices of every leaf; the leaf itself when there is no device axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def row_indices(count, axis):
    """Where this device's `count` rows stand in the global batch, [count] int32."""
    return rank(axis) * count + jax.numpy.arange(count)


def rank(axis):
    """The number of this device along `axis`; 0 when there is no device axis."""
    return 0 if axis is None else jax.lax.axis_index(axis)
