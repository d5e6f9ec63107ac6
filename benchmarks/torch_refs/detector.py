"""A detector in PyTorch: EfficientNet-Lite0, FPN, a decoupled head per level, and targets by TAL.

Written from the papers (arXiv:1612.03144, 2107.08430, 2108.07755). Images are
[B, C, H, W], channels-last in memory.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_refs import assign
from benchmarks.torch_refs.efficientnet import build_stages, conv_module

STRIDES = (8, 16, 32)
ASSIGNMENT = {"topk": 10, "alpha": 0.5, "beta": 6.0}


def head_module(
    channels: int, width: int, kernel: int, activation: type[nn.Module] | None = nn.SiLU
) -> nn.Sequential:
    """Convolution, batch norm and activation, as in the neck and in the head."""
    return conv_module(channels, width, kernel, activation=activation, eps=1e-5)


class Backbone(nn.Module):
    """A backbone with maps of strides 8, 16 and 32, whose first `frozen` stages are not trained.

    The stem counts as the first stage.
    """

    def __init__(self, frozen: int):
        super().__init__()
        stages = build_stages()
        self.stages = nn.ModuleList(stages)
        for stage in stages[:frozen]:
            stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Three feature maps, fine to coarse, of images x [B, 3, H, W]."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in (3, 5, 7):  # the last of their resolution
                maps.append(x)
        return maps


class Detector(nn.Module):
    """A detector: backbone, FPN, and a decoupled head per level."""

    def __init__(self, classes: int, width: int = 96, frozen: int = 3):
        super().__init__()
        self.backbone = Backbone(frozen)
        self.lateral = nn.ModuleList(head_module(c, width, 1, None) for c in (40, 112, 320))
        self.out = nn.ModuleList(head_module(width, width, 3) for _ in STRIDES)
        self.stem = nn.ModuleList(head_module(width, width, 1) for _ in STRIDES)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(*(head_module(width, width, 3) for _ in range(2))) for _ in range(2)
            )
            for _ in STRIDES
        )
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in STRIDES)
        self.sides = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        for last in self.classes:
            nn.init.constant_(last.bias, -math.log(99))

    def train(self, mode: bool = True) -> "Detector":
        """Set the mode of all modules but the backbone, which stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(class logits [B, A, K], boxes [B, A, 4], points [A, 2]) of images [B, 3, H, W].

        Boxes are in pixels, and points are the centers of the cells.
        """
        maps = [lateral(m) for lateral, m in zip(self.lateral, self.backbone(x), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + functional.interpolate(maps[i + 1], size=maps[i].shape[-2:])
        classes, boxes, points = [], [], []
        for i, (stride, m) in enumerate(zip(STRIDES, maps, strict=True)):
            m = self.stem[i](self.out[i](m))
            class_features, box_features = (branch(m) for branch in self.branches[i])
            classes.append(self.classes[i](class_features).flatten(2).transpose(1, 2))
            ltrb = self.sides[i](box_features).float().flatten(2).transpose(1, 2).clamp(max=8).exp()
            centers = _grid_centers(m.shape[-2:], stride, m.device)
            ltrb = ltrb * stride
            boxes.append(torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], -1))
            points.append(centers)
        return torch.cat(classes, 1), torch.cat(boxes, 1), torch.cat(points)


def detection_loss(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropy plus 5 times the CIoU loss, divided by the sum of the target scores.

    The CIoU loss of a cell is weighted by its target score.

    target: true boxes [B, G, 4], true labels [B, G] and valid [B, G].
    """
    classes, boxes, points = outputs
    true_boxes, true_labels, valid = target
    assigned = assign.task_aligned(
        classes.sigmoid(),
        boxes.detach(),
        points,
        true_boxes,
        true_labels,
        valid,
        **ASSIGNMENT,
    )
    positive, _, scores, true = assigned
    total = scores.sum().clamp(min=1)
    class_loss = functional.binary_cross_entropy_with_logits(classes, scores, reduction="sum")
    weight = scores.sum(-1)[positive]
    box_loss = (1 - ciou(boxes[positive], true[positive])) * weight
    return (class_loss + 5 * box_loss.sum()) / total


def ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU [N] of boxes [N, 4]; the weight of its aspect term passes no gradient."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    (wa, ha), (wb, hb) = ((x[:, 2:] - x[:, :2]).unbind(-1) for x in (a, b))
    iou = intersection / (wa * ha + wb * hb - intersection + eps)
    diagonal = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    between = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    v = 4 / math.pi**2 * (torch.atan2(wa, ha) - torch.atan2(wb, hb)).square()
    alpha = (v / (1 - iou + v + eps)).detach()
    return iou - between.square().sum(-1) / (diagonal.square().sum(-1) + eps) - alpha * v


def _grid_centers(shape, stride, device):
    """Centers [A, 2] of the cells of a map, in pixels."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in shape), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * stride
