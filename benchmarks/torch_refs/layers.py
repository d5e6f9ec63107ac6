"""Single layers in PyTorch, with jaxdet's parameters, for `benchmarks.layers`.

Images [B, C, H, W] and kernels are channels-last in memory. Batch norm is in training mode; the
number of threads is PyTorch's default. Results are returned in jaxdet's layout.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.single_layers import LayerSpec
from benchmarks.torch_refs.sliding import to_channels_last


def build_module(layer: LayerSpec, params: Mapping[str, np.ndarray]) -> nn.Module:
    """The layer as a module with jaxdet's parameters {name: array}."""
    module = _empty_module(layer)
    state = {
        "bias" if name == "bias" else "weight": torch.from_numpy(_to_torch_axes(np.array(array)))
        for name, array in params.items()
    }
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state[name])
    return module.train().to(memory_format=torch.channels_last)


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of images [B, H, W, C], or of rows [B, D]."""
    return to_channels_last(array) if array.ndim == 4 else torch.from_numpy(array)


@torch.no_grad()
def forward(module: nn.Module, x: Tensor) -> tuple[Tensor, tuple]:
    """(output, ()) of a forward pass, without gradients."""
    return module(x), ()


def forward_backward(
    module: nn.Module, x: Tensor, cotangent: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(output, gradients for the parameters and for x, if it requires one)."""
    out = module(x)
    inputs = [*module.parameters(), *([x] if x.requires_grad else [])]
    return out, torch.autograd.grad(out, inputs, cotangent)


def named_arrays(
    module: nn.Module, out: Tensor, gradients: tuple[Tensor, ...]
) -> dict[str, np.ndarray]:
    """Output and gradients under jaxdet's names and in its layout."""
    parameters = [name for name, _ in module.named_parameters()]
    names = ["output", *parameters, "input"][: 1 + len(gradients)]
    tensors = [value.detach().float().cpu() for value in (out, *gradients)]
    return dict(_to_jaxdet(name, value) for name, value in zip(names, tensors, strict=True))


def _empty_module(layer):
    """A module with the sizes of the layer and PyTorch's initial parameters."""
    channels, sizes = layer.shape[-1], (layer.kernel, layer.stride, layer.padding)
    match layer.op:
        case "dense":
            return nn.Linear(channels, layer.width)
        case "conv":
            return nn.Conv2d(channels, layer.width, *sizes, groups=layer.groups, bias=False)
        case "norm":
            return nn.BatchNorm2d(channels)
        case "relu":
            return nn.ReLU()
        case "max":
            return nn.MaxPool2d(*sizes)
        case "mean":
            return nn.AvgPool2d(*sizes)
    raise AssertionError(layer.op)


def _to_torch_axes(array):
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _to_jaxdet(name, value):
    """Convert a named result of PyTorch to jaxdet's name and layout: (name, array)."""
    if name in ("output", "input"):
        return name, (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()
    if name == "bias":
        return name, value.numpy()
    if value.ndim == 1:
        return "scale", value.numpy()
    return "kernel", (value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T).numpy()
