"""Scores of a whole split, computed on the host from the measurements of each image.

    from jaxdet import metrics

    metrics.verification.eer(scores, same)

`classification` has the scores of localization too.
"""

from jaxdet.metrics import (
    classification,
    detection,
    verification,
)

__all__ = ["classification", "detection", "verification"]
