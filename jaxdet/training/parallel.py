"""Compile a pure step for one device (`jit`) or several (`pmap`); results agree up to rounding."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.errors import InputError
from jaxdet.kernels import compiler
from jaxdet.training import hosts
from jaxdet.types import Device, Tree

AXIS = "devices"
OutAxes = int | tuple[int | None, ...] | None  # as in `pmap`
Argnums = tuple[int, ...]
CUDA_VERSIONS = (12, 13)


def local_devices(count: int = 0) -> list[Device]:
    """The first `count` devices of this machine; 0 means all devices.

    Raises InputError if the machine has fewer.
    """
    available = jax.local_devices()
    if not 0 <= count <= len(available):
        raise InputError(
            f"--devices must be from 0 (all) to {len(available)}, the number of "
            f"{available[0].platform} devices of this machine, got {count}"
            f"{f'; {unused}' if (unused := unused_gpu()) else ''}"
        )
    return available[: count or None]


def run_devices(count: int = 0) -> list[Device]:
    """`local_devices` of every process that trains the run, in the order of the processes.

    Raises InputError if processes have different numbers of devices.
    """
    own = local_devices(count)
    if hosts.count() == 1:
        return own
    hosts.check_same("the number of devices of a process", len(own))
    groups = groupby(jax.devices(), key=lambda device: device.process_index)
    return [device for _, group in groups for device in list(group)[: len(own)]]


def available_devices(count: int = 0) -> list[Device]:
    """The first `count` devices of this machine, or all if it has fewer; 0 means all devices."""
    return jax.local_devices()[: count or None]


def unused_gpu() -> str:
    """A line about an NVIDIA GPU that jax cannot use for lack of its CUDA plugin; else ""."""
    asked_for = os.environ.get("JAX_PLATFORMS", "cuda")
    present = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if not present or not {"cuda", "gpu"} & set(asked_for.split(",")):
        return ""
    if any(find_spec(f"jax_cuda{version}_plugin") for version in CUDA_VERSIONS):
        return ""
    return (
        "this machine has an NVIDIA GPU, but jax has no CUDA plugin and uses the CPU: "
        "pip install jaxdet[cuda]; JAX_PLATFORMS=cpu chooses the CPU"
    )


def check_batch(batch: int, devices: Sequence[Device], option: str = "--batch") -> None:
    """Raise InputError unless the devices can split a batch equally."""
    if batch < 1 or batch % len(devices):
        raise InputError(
            f"{option} must be a positive multiple of {len(devices)}, the number of devices, got "
            f"{batch}; --devices chooses another number"
        )


def replicate(tree: Tree, devices: Sequence[Device]) -> Tree:
    """A copy of every array of a tree on each device.

    On devices of several processes, each process gives the same tree.
    """
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array):  # `device_put` would send the array to all processes, to compare them
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        return jax.make_array_from_callback(np.shape(array), sharding, lambda _: array)

    return jax.tree.map(put, tree)


def compile_step(
    step: Callable,
    devices: Sequence[Device],
    *,
    replicated: int,
    out_axes: OutAxes = None,
    donate: Argnums = (),
) -> Callable:
    """`step(*args, axis=)` compiled for the devices.

    The first `replicated` arguments are the same on every device; the last one is a tree of rows
    [B, ...] that are split over the devices.  `out_axes` is as in `pmap`: None for replicated
    results, 0 for rows, which several devices return as [devices, B / devices, ...] (`unshard` them
    on the host).  With several processes, each gives and gets the rows of its own devices.  A step
    that donates arguments is compiled as a training step.
    """
    if len(devices) == 1:
        step = partial(step, axis=None)
        return compiler.jit(step, donate_argnums=donate)
    return _compile_on_devices(step, devices, replicated, out_axes, donate)


def compile_pmap(
    step: Callable, devices: Sequence[Device], replicated: int, out_axes: OutAxes, donate: Argnums
) -> Callable:
    """`compile_step` for several devices by `jax.pmap`, which takes no compiler options."""
    own = sum(device.process_index == jax.process_index() for device in devices)

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
        return parallel_step(*args[:replicated], shard(args[replicated], own))

    return call


def compile_shard_map(
    step: Callable, devices: Sequence[Device], replicated: int, out_axes: OutAxes, donate: Argnums
) -> Callable:
    """`compile_step` for several devices by `jax.shard_map`: equals `compile_pmap` bit for bit.

    It does not support several processes.
    """
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    axes = out_axes if isinstance(out_axes, tuple) else (out_axes,)

    @partial(jax.jit, donate_argnums=donate)
    @partial(
        jax.shard_map,
        mesh=Mesh(np.array(devices), (AXIS,)),
        in_specs=(whole,) * replicated + (split,),
        out_specs=tuple(whole if axis is None else split for axis in axes),
        check_vma=False,  # as in pmap: `psum` of values that are equal on all devices
    )
    def parallel_step(*args):
        results = step(*args, axis=AXIS)
        results = results if isinstance(out_axes, tuple) else (results,)
        pairs = zip(axes, results, strict=True)
        return tuple(
            result if axis is None else jax.tree.map(lambda row: row[None], result)
            for axis, result in pairs
        )

    def call(*args):
        results = parallel_step(*args)
        return results if isinstance(out_axes, tuple) else results[0]

    return call


_compile_on_devices = compile_pmap  # or compile_shard_map: the same bits


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
