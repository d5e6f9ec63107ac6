"""Andrew's network in PyTorch, as seed 001 describes it: sequential, and convolutional.

The weights are those of jaxdet's network, so that the outputs agree.  Images are [B, 3, H, W],
channels-last in memory; no gradient is kept; threads are PyTorch's default.
"""

import os

import numpy as np
import torch
from torch import nn


def about():
    """Version, threads and settings of OpenMP, for the record."""
    openmp = {name: v for name, v in os.environ.items() if name.startswith(("OMP_", "GOMP_"))}
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "openmp": openmp}


def images(x):
    """Channels-last tensor [B, C, H, W] of a NumPy array [B, H, W, C]."""
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def networks(params):
    """(sequential, convolutional) modules with the parameters of jaxdet's convolutional form."""
    dense = [layer(params[f"dense{i}"]) for i in (1, 2, 3)]
    trunk = [layer(params["conv1"]), nn.MaxPool2d(2)]
    convolutional = nn.Sequential(*trunk, *dense)
    sequential = nn.Sequential(*trunk, nn.Flatten(), *map(linear, dense))
    return tuple(
        net.eval().to(memory_format=torch.channels_last) for net in (sequential, convolutional)
    )


def layer(params):
    """A convolution with a kernel [k, k, C, width] and a bias [width] of jaxdet."""
    kernel = np.array(params["kernel"]).transpose(3, 2, 0, 1)  # [width, C, k, k]
    width, channels, side, _ = kernel.shape
    made = nn.Conv2d(channels, width, side)
    made.load_state_dict(
        {"weight": torch.from_numpy(kernel), "bias": torch.from_numpy(np.array(params["bias"]))}
    )
    return made


def linear(convolution):
    """A convolution over its whole input as a dense layer on flattened channels, rows, columns."""
    weight = convolution.weight.flatten(1)  # [width, C k k]
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": convolution.bias})
    return made


@torch.no_grad()
def slide(net, images, pieces, window, stride):
    """Outputs [images, rows, columns, outputs] of each piece of the images, one call a piece."""
    return [_outputs(net, images, piece, window, stride) for piece in pieces]


@torch.no_grad()
def convolve(net, images):
    """Outputs [B, rows, columns, outputs]."""
    return net(images).permute(0, 2, 3, 1)


def _outputs(net, images, piece, window, stride):
    """Outputs of one piece: its windows are cut and handed to the network as a batch."""
    first, row, column, _ = map(int, piece.start)
    count, height, width, channels = piece.size
    part = images[first : first + count, :, row : row + height, column : column + width]
    cut = part.unfold(2, window, stride).unfold(3, window, stride)
    cut = cut.permute(0, 2, 3, 1, 4, 5)  # [n, rows, columns, C, window, window]
    batch = cut.reshape(-1, channels, window, window).contiguous(memory_format=torch.channels_last)
    return net(batch).reshape(*cut.shape[:3], -1)
