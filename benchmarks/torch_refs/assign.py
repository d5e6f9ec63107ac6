"""Task-aligned assignment as detectors in PyTorch usually have it: dense tensors [B, G, A]."""

import torch
from torch.nn import functional

EPS = 1e-9


@torch.no_grad()
def task_aligned(scores, boxes, points, true_boxes, true_labels, valid, topk, alpha, beta):
    """(positive [B, A], index [B, A], scores [B, A, K], boxes [B, A, 4]) of a batch."""
    batch, cells, classes = scores.shape
    low, high = true_boxes[:, :, None].chunk(2, -1)  # [B, G, 1, 2]
    apart = torch.cat([points[None, None] - low, high - points[None, None]], -1)
    candidates = (apart.amin(-1) > EPS) & valid[..., None]  # [B, G, A]
    named = true_labels[:, None].expand(-1, cells, -1)
    chances = scores.gather(2, named).transpose(1, 2)  # [B, G, A]
    overlap = _iou(true_boxes[:, :, None], boxes[:, None]) * candidates
    metric = chances.pow(alpha) * overlap.pow(beta) * candidates
    best, place = metric.topk(topk, -1)
    chosen = torch.zeros_like(candidates).scatter_(2, place, best > 0)
    owner = torch.where(chosen, overlap, -1.0).argmax(1)  # [B, A]
    positive = chosen.any(1)
    slots = functional.one_hot(owner, true_boxes.shape[1]).transpose(1, 2).bool()
    mine = chosen & slots
    metric, overlap = metric * mine, overlap * mine
    scale = overlap.amax(-1, keepdim=True) / (metric.amax(-1, keepdim=True) + EPS)
    wanted = (metric * scale).amax(1)  # [B, A]
    label = true_labels.gather(1, owner)
    targets = functional.one_hot(label, classes) * wanted[..., None]
    return positive, owner, targets, true_boxes.gather(1, owner[..., None].expand(-1, -1, 4))


def _iou(a, b):
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared + EPS)
