"""A detector in PyTorch: EfficientNet-Lite0, FPN, a decoupled head a level, task-aligned targets.

Written from the papers (arXiv:1905.11946, 1612.03144, 2107.08430, 2108.07755).  Images are
[B, C, H, W], channels-last in memory.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_refs import assign

STAGES = (  # blocks, width, kernel, stride, expansion
    *((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6)),
    *((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6)),
)
STRIDES = (8, 16, 32)
HOW = {"topk": 10, "alpha": 0.5, "beta": 6.0}


class Same(nn.Conv2d):
    """A convolution that pads to size / stride rounded up, the odd pixel at the end."""

    def forward(self, x):
        """[B, C, H, W] to [B, D, H / stride, W / stride]."""
        pads = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [need // 2, need - need // 2]
        return super().forward(functional.pad(x, pads) if any(pads) else x)


def unit(channels, width, kernel, stride=1, groups=1, active=nn.ReLU6, eps=1e-3):
    """Convolution, batch norm and activation."""
    conv = Same(channels, width, kernel, stride, groups=groups, bias=False)
    norm = nn.BatchNorm2d(width, eps=eps)
    return nn.Sequential(conv, norm, active() if active else nn.Identity())


def joint(channels, width, kernel, active=nn.SiLU):
    """The same in neck and head."""
    return unit(channels, width, kernel, active=active, eps=1e-5)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, channels, width, kernel, stride, expand):
        super().__init__()
        wide = channels * expand
        layers = [unit(channels, wide, 1)] if expand > 1 else []
        layers.append(unit(wide, wide, kernel, stride, wide))
        layers.append(unit(wide, width, 1, active=None))
        self.layers = nn.Sequential(*layers)
        self.around = stride == 1 and channels == width

    def forward(self, x):
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = self.layers(x)
        return x + y if self.around else y


class Features(nn.Module):
    """Maps of strides 8, 16 and 32; the first `frozen` of stem and stages do not learn."""

    def __init__(self, frozen):
        super().__init__()
        parts, channels = [unit(3, 32, 3, 2)], 32
        for blocks, width, kernel, stride, expand in STAGES:
            stage = []
            for i in range(blocks):
                stage.append(Block(channels, width, kernel, 1 if i else stride, expand))
                channels = width
            parts.append(nn.Sequential(*stage))
        self.parts = nn.ModuleList(parts)
        for part in parts[:frozen]:
            part.requires_grad_(False)

    def forward(self, x):
        """[B, 3, H, W] to three maps, fine to coarse."""
        maps = []
        for i, part in enumerate(self.parts):
            x = part(x)
            if i in (3, 5, 7):  # the last of their resolution
                maps.append(x)
        return maps


class Detector(nn.Module):
    """Classes [B, A, K], boxes [B, A, 4] in pixels, and points [A, 2] of images [B, 3, H, W]."""

    def __init__(self, classes, width=96, frozen=3):
        super().__init__()
        self.features = Features(frozen)
        self.lateral = nn.ModuleList(joint(c, width, 1, None) for c in (40, 112, 320))
        self.out = nn.ModuleList(joint(width, width, 3) for _ in STRIDES)
        self.stem = nn.ModuleList(joint(width, width, 1) for _ in STRIDES)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(*(joint(width, width, 3) for _ in range(2))) for _ in range(2)
            )
            for _ in STRIDES
        )
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in STRIDES)
        self.sides = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        for last in self.classes:
            nn.init.constant_(last.bias, -math.log(99))

    def train(self, mode=True):
        """Batch norms of the backbone stay as they are."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, x):
        """See the class."""
        maps = [lateral(m) for lateral, m in zip(self.lateral, self.features(x), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + functional.interpolate(maps[i + 1], size=maps[i].shape[-2:])
        classes, boxes, points = [], [], []
        for i, (stride, m) in enumerate(zip(STRIDES, maps, strict=True)):
            m = self.stem[i](self.out[i](m))
            classed, boxed = (branch(m) for branch in self.branches[i])
            classes.append(self.classes[i](classed).flatten(2).transpose(1, 2))
            reach = self.sides[i](boxed).flatten(2).transpose(1, 2).clamp(max=8).exp() * stride
            at = self._points(m.shape[-2:], stride)
            boxes.append(torch.cat([at - reach[..., :2], at + reach[..., 2:]], -1))
            points.append(at)
        return torch.cat(classes, 1), torch.cat(boxes, 1), torch.cat(points)

    def _points(self, shape, stride):
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in shape), indexing="ij")
        return torch.stack([x, y], -1).reshape(-1, 2) * stride


def loss(answers, target):
    """Cross entropy and 5 x CIoU, weighed and divided by wanted scores."""
    classes, boxes, points = answers
    found = assign.task_aligned(classes.sigmoid(), boxes.detach(), points, *target, **HOW)
    positive, _, wanted, true = found
    whole = wanted.sum().clamp(min=1)
    known = functional.binary_cross_entropy_with_logits(classes, wanted, reduction="sum")
    weight = wanted.sum(-1)[positive]
    placed = (1 - ciou(boxes[positive], true[positive])) * weight
    return (known + 5 * placed.sum()) / whole


def ciou(a, b, eps=1e-7):
    """Complete IoU [N] of boxes [N, 4]; its aspect weight passes no gradient."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    (wa, ha), (wb, hb) = ((x[:, 2:] - x[:, :2]).unbind(-1) for x in (a, b))
    iou = shared / (wa * ha + wb * hb - shared + eps)
    across = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    between = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    v = 4 / math.pi**2 * (torch.atan2(wa, ha) - torch.atan2(wb, hb)).square()
    alpha = (v / (1 - iou + v + eps)).detach()
    return iou - between.square().sum(-1) / (across.square().sum(-1) + eps) - alpha * v
