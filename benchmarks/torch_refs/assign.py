"""Task-aligned assignment as usual in PyTorch detectors, with dense tensors [B, G, A]."""

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-9


@torch.no_grad()
def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    valid: Tensor,
    topk: int,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(positive [B, A], index [B, A], scores [B, A, K], boxes [B, A, 4]) of a batch.

    Inputs: scores [B, A, K], boxes [B, A, 4], points [A, 2], true boxes [B, G, 4], true labels and
    valid [B, G].
    """
    batch, cells, classes = scores.shape
    low, high = true_boxes[:, :, None].chunk(2, -1)  # [B, G, 1, 2]
    ltrb = torch.cat([points[None, None] - low, high - points[None, None]], -1)
    candidates = (ltrb.amin(-1) > EPS) & valid[..., None]  # [B, G, A]
    label_index = true_labels[:, None].expand(-1, cells, -1)
    probabilities = scores.gather(2, label_index).transpose(1, 2)  # [B, G, A]
    ious = _iou(true_boxes[:, :, None], boxes[:, None]) * candidates
    metric = probabilities.pow(alpha) * ious.pow(beta) * candidates
    best, place = metric.topk(topk, -1)
    chosen = torch.zeros_like(candidates).scatter_(2, place, best > 0)
    owner = torch.where(chosen, ious, -1.0).argmax(1)  # [B, A]
    positive = chosen.any(1)
    owned = functional.one_hot(owner, true_boxes.shape[1]).transpose(1, 2).bool()
    assigned = chosen & owned
    metric, ious = metric * assigned, ious * assigned
    scale = ious.amax(-1, keepdim=True) / (metric.amax(-1, keepdim=True) + EPS)
    target_score = (metric * scale).amax(1)  # [B, A]
    label = true_labels.gather(1, owner)
    target_scores = functional.one_hot(label, classes) * target_score[..., None]
    return positive, owner, target_scores, true_boxes.gather(1, owner[..., None].expand(-1, -1, 4))


def _iou(a, b):
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return intersection / (areas[0] + areas[1] - intersection + EPS)
