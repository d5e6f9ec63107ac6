"""PyTorch's CIFAR-10 tutorial: its network, trained and evaluated on images held in memory.

After pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html.  Images are bytes [N, C, H, W];
each batch is taken from them and normalised, which is quicker than the tutorial's loader.
"""

import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Two 5x5 convolutions without padding, each pooled, and three dense layers."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.dense1, self.dense2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.logits = nn.Linear(84, classes)

    def forward(self, x):
        """Logits [B, classes] of x [B, 3, 32, 32]."""
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        x = torch.flatten(x, 1)
        for dense in (self.dense1, self.dense2):
            x = functional.relu(dense(x))
        return self.logits(x)


class Training:
    """The network on its way: SGD with Nesterov momentum on images [N, 32, 32, 3], labels [N]."""

    def __init__(self, images, labels, *, lr, momentum):
        self.net, self.images, self.labels = Net(), chosen(images), torch.from_numpy(labels).long()
        learnt = self.net.parameters()
        self.optimizer = torch.optim.SGD(learnt, lr=lr, momentum=momentum, nesterov=True)

    def steps(self, rows):
        """A step for each of rows [S, B]; returns the last loss, so that all are waited for."""
        for index in torch.from_numpy(rows).long():
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.net(normal(self.images[index]))
            loss = functional.cross_entropy(logits, self.labels[index])
            loss.backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, images, labels, batch):
        """The share of right answers."""
        parts = zip(chosen(images).split(batch), torch.from_numpy(labels).split(batch), strict=True)
        right = sum((self.net(normal(x)).argmax(1) == y).sum().item() for x, y in parts)
        return right / len(labels)


def chosen(images):
    """Bytes [N, H, W, C] as PyTorch lays out images."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def normal(x):
    """Bytes as levels of -1 to 1."""
    return (x / 255 - 0.5) / 0.5
