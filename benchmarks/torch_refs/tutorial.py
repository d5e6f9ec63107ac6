"""PyTorch's CIFAR-10 tutorial: its network, trained and evaluated on images held in memory.

After pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html. Images are uint8 [N, C, H, W];
each batch is taken from this array and normalized, which is faster than the tutorial's loader.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_refs import backend


class Net(nn.Module):
    """Two 5x5 convolutions without padding, each pooled, and three dense layers."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.dense1, self.dense2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.logits = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of x [B, 3, 32, 32]."""
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        x = torch.flatten(x, 1)
        for dense in (self.dense1, self.dense2):
            x = functional.relu(dense(x))
        return self.logits(x)


class Trainer:
    """Trains `Net` by SGD with Nesterov momentum on images [N, 32, 32, 3] uint8 and labels [N]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, lr: float, momentum: float):
        self.device = backend.device()
        backend.set_precision("tf32")  # as JAX, by default
        self.net = Net().to(self.device)
        self.images, self.labels = self._place(images, labels)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=lr, momentum=momentum, nesterov=True
        )

    def train_steps(self, rows: np.ndarray) -> float:
        """Take one step for each batch of rows [S, B]; returns the last loss."""
        for index in torch.from_numpy(rows).long().to(self.device):
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.net(normalize(self.images[index]))
            loss = functional.cross_entropy(logits, self.labels[index])
            loss.backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
        """Fraction of the images [N, 32, 32, 3] whose label is predicted correctly."""
        placed = self._place(images, labels)
        parts = zip(*(tensor.split(batch) for tensor in placed), strict=True)
        correct = sum((self.net(normalize(x)).argmax(1) == y).sum().item() for x, y in parts)
        return correct / len(labels)

    def _place(self, images, labels):
        """Images [N, C, H, W] and labels [N] on the device."""
        pair = to_nchw(images), torch.from_numpy(labels).long()
        return backend.to_device(pair, self.device)


def to_nchw(images: np.ndarray) -> Tensor:
    """Images [N, H, W, C] as [N, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def normalize(x: Tensor) -> Tensor:
    """Scale pixel values from [0, 255] to [-1, 1]."""
    return (x / 255 - 0.5) / 0.5
