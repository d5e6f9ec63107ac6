"""Device, precision and synchronization of PyTorch."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import torch


def describe() -> dict[str, Any]:
    """Version, device, threads and OpenMP settings, for the record."""
    openmp = {name: v for name, v in os.environ.items() if name.startswith(("OMP_", "GOMP_"))}
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {"version": torch.__version__, "threads": torch.get_num_threads(), "openmp": openmp}
    return found | ({"cuda": torch.version.cuda, "device": cuda} if cuda else {})


def device() -> torch.device:
    """The kind of device that JAX computes on: the first CUDA device, or the CPU."""
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def to_device(tree: Any, place: torch.device) -> Any:
    """A tree of tensors, copied to a device in the same memory format; other leaves are kept."""
    return jax.tree.map(lambda x: x.to(place) if isinstance(x, torch.Tensor) else x, tree)


def wait(place: torch.device) -> None:
    """Wait until a device has computed everything."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def blocked(call: Callable[[], Any], place: torch.device) -> Callable[[], Any]:
    """A function that calls `call` and waits until the device has computed its result."""

    def run():
        value = call()
        wait(place)
        return value

    return run


def set_precision(precision: str) -> None:
    """Allow TF32 in products of float32 arrays, unless `precision` is "float32".

    PyTorch's own default is TF32 for convolutions and float32 for matrix products. cuDNN's
    algorithms are measured and the fastest is taken, as in XLA.
    """
    tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def layer_dtype(precision: str) -> torch.dtype:
    """The data type in which layers compute."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(precision: str, place: torch.device) -> AbstractContextManager:
    """A context for the forward pass; with "bfloat16", products are computed in bfloat16."""
    return torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16")
