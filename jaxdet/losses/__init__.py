"""Element-wise losses: one value per element, which the caller masks and averages.

    from jaxdet import losses

    losses.boxes.ciou(predicted, target)  # [...] for boxes [..., 4]

`boxes` is for box regression, `classification` for one label per image, and `metric_learning` for
embeddings.
"""

from jaxdet.losses import (
    boxes,
    classification,
    metric_learning,
)

__all__ = ["boxes", "classification", "metric_learning"]
