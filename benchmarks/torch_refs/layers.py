"""Single layers in PyTorch, with the parameters of jaxdet's, for `benchmarks.layers`.

Images are [B, C, H, W], channels-last in memory, and so are kernels; batch norm is that of
training; threads are PyTorch's default.  What is handed back is in jaxdet's layout.
"""

import numpy as np
import torch
from torch import nn

from benchmarks.torch_refs.sliding import images


def module(layer, params):
    """The layer as a module with the parameters {name: array} of jaxdet's."""
    made = _empty(layer)
    state = {_name(name): torch.from_numpy(_weight(np.array(v))) for name, v in params.items()}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(state[name])
    return made.train().to(memory_format=torch.channels_last)


def tensor(array, *, gradient=False):
    """A tensor of images [B, H, W, C], or of rows [B, N]."""
    made = images(array) if array.ndim == 4 else torch.from_numpy(array)
    return made.requires_grad_(gradient)


@torch.no_grad()
def forward(net, x):
    """(output, no gradients) of a forward pass."""
    return net(x), ()


def both(net, x, cotangent):
    """(output, gradients by the parameters and by x, where it asks for one)."""
    out = net(x)
    wanted = [*net.parameters(), *([x] if x.requires_grad else [])]
    return out, torch.autograd.grad(out, wanted, cotangent)


def values(net, out, gradients):
    """{name: array} of an output and its gradients, in jaxdet's names and layout."""
    parameters = [name for name, _ in net.named_parameters()]
    names = ["output", *parameters, "input"][: 1 + len(gradients)]
    arrays = [value.detach() for value in (out, *gradients)]
    return dict(_back(name, array) for name, array in zip(names, arrays, strict=True))


def _empty(layer):
    """A module of the layer's sizes."""
    channels, side = layer.shape[-1], (layer.kernel, layer.stride, layer.padding)
    match layer.kind:
        case "dense":
            return nn.Linear(channels, layer.width)
        case "conv":
            return nn.Conv2d(channels, layer.width, *side, groups=layer.groups, bias=False)
        case "norm":
            return nn.BatchNorm2d(channels)
        case "relu":
            return nn.ReLU()
        case "max":
            return nn.MaxPool2d(*side)
        case "mean":
            return nn.AvgPool2d(*side)
    raise AssertionError(layer.kind)


def _name(name):
    return "bias" if name == "bias" else "weight"


def _weight(array):
    """A parameter of jaxdet in PyTorch's order of axes."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _back(name, value):
    """(name, array) of jaxdet for a result of PyTorch."""
    if name in ("output", "input"):
        return name, (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()
    if name == "bias":
        return name, value.numpy()
    if value.ndim == 1:
        return "scale", value.numpy()
    return "kernel", (value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T).numpy()
