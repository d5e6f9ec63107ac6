"""Element-wise losses: one value per element, which the caller masks and averages.

from jaxdet import losses
losses.boxes.ciou(predicted, target)
"""

from jaxdet.losses import (
    boxes,
    classification,
    metric_learning,
)

__all__ = ["boxes", "classification", "metric_learning"]
