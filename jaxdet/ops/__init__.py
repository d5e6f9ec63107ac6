"""Array functions for detection, sliding windows and embeddings, usable on their own.

- `boxes`: corner boxes `x0 y0 x1 y1`: overlap, clipping, format conversion
- `anchors`: grid centers, anchor boxes, box encodings
- `assign`: assignment of true boxes to cells (`task_aligned`, `max_iou`)
- `nms`: non-maximum suppression and box fusion
- `windows`: receptive fields, extraction and targets of sliding windows
- `embeddings`: normalization, similarity, identification
- `augment`: random image and box transforms
- `numerics`: safe division and precision
- `resize`: resizing of 8-bit images, bit-exact with Pillow
- `tiles`: large images as overlapping tiles, and merging of the boxes of all tiles
- `alignment`: the similarity transform that aligns the landmarks of a face

Functions are pure and can be jitted, vmapped and differentiated.  Each function is written for one
image, or broadcasts; `jax.vmap` adds the batch:

    from jaxdet import ops

    ops.boxes.iou(a[:, None], b[None])  # all pairs of a [N, 4] and b [M, 4]
    jax.vmap(ops.nms.nms)(boxes, scores, labels)  # [B, N, 4], [B, N], [B, N]
"""

from jaxdet.ops import (
    alignment,
    anchors,
    assign,
    augment,
    boxes,
    embeddings,
    nms,
    numerics,
    resize,
    tiles,
    windows,
)

__all__ = [
    "alignment",
    "anchors",
    "assign",
    "augment",
    "boxes",
    "embeddings",
    "nms",
    "numerics",
    "resize",
    "tiles",
    "windows",
]
