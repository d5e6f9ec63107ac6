"""The network of Andrew Ng's lecture in PyTorch, sequential and convolutional.

The weights are taken from jaxdet's network, so that the outputs agree. Images are [B, 3, H, W],
channels-last in memory; no gradients are kept; the number of threads is PyTorch's default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.sliding import Crop


def to_channels_last(x: np.ndarray) -> Tensor:
    """Channels-last tensor [B, C, H, W] of a NumPy array [B, H, W, C]."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def build_nets(params: Mapping[str, Any], *, softmax: bool = False) -> tuple[nn.Module, nn.Module]:
    """(sequential, convolutional) modules with the parameters of jaxdet's convolutional form."""
    last = [nn.Softmax(dim=1)] if softmax else []
    dense = [_to_conv(params[f"dense{i}"]) for i in (1, 2, 3)]
    trunk = [_to_conv(params["conv1"]), nn.MaxPool2d(2)]
    convolutional = nn.Sequential(*trunk, *dense, *last)
    sequential = nn.Sequential(*trunk, nn.Flatten(), *map(_to_linear, dense), *last)
    return tuple(
        net.eval().to(memory_format=torch.channels_last) for net in (sequential, convolutional)
    )


@torch.no_grad()
def run_sequential(
    net: nn.Module, images: Tensor, crops: Sequence[Crop], window: int, stride: int
) -> list[Tensor]:
    """Outputs [images, rows, columns, outputs] of each crop of the images, one call per crop."""
    return [_crop_outputs(net, images, crop, window, stride) for crop in crops]


@torch.no_grad()
def run_convolutional(net: nn.Module, images: Tensor) -> Tensor:
    """Outputs [B, rows, columns, outputs] of the convolutional form on images [B, C, H, W]."""
    return net(images).permute(0, 2, 3, 1)


def _crop_outputs(net, images, crop, window, stride):
    """Outputs for a crop of the images: its windows are one batch of the network."""
    first, row, column, _ = map(int, crop.start)
    count, height, width, channels = crop.size
    part = images[first : first + count, :, row : row + height, column : column + width]
    cut = part.unfold(2, window, stride).unfold(3, window, stride)
    cut = cut.permute(0, 2, 3, 1, 4, 5)  # [n, rows, columns, C, window, window]
    batch = cut.reshape(-1, channels, window, window).contiguous(memory_format=torch.channels_last)
    return net(batch).reshape(*cut.shape[:3], -1)


def _to_conv(params):
    """A convolution with jaxdet's kernel [k, k, C, width] and bias [width]."""
    kernel = np.array(params["kernel"]).transpose(3, 2, 0, 1)  # [width, C, k, k]
    width, channels, side, _ = kernel.shape
    module = nn.Conv2d(channels, width, side)
    module.load_state_dict(
        {"weight": torch.from_numpy(kernel), "bias": torch.from_numpy(np.array(params["bias"]))}
    )
    return module


def _to_linear(convolution):
    """The dense layer that equals a k x k convolution, on inputs flattened from [C, k, k]."""
    weight = convolution.weight.flatten(1)  # [width, C k k]
    module = nn.Linear(weight.shape[1], weight.shape[0])
    module.load_state_dict({"weight": weight, "bias": convolution.bias})
    return module
