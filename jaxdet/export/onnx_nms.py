"""Non-maximum suppression as nodes of an ONNX graph, as `DetectionTask.predict` does it.

ONNX's operator `NonMaxSuppression` suppresses greedily within each class, as `ops.nms.nms` does
with labels.  The nodes around it choose the pairs of cell and class that it receives, and the best
boxes of all classes that remain.
"""

from typing import NamedTuple

import numpy as np

from jaxdet.export.onnx_graph import BATCH, Graph, Value


class Suppression(NamedTuple):
    """Options of the suppression; see `ops.nms.nms`."""

    height: int  # of the images, to which boxes are clipped
    width: int
    candidates: int  # largest number of pairs of cell and class that are considered
    iou_threshold: float
    max_detections: int
    score_threshold: float

    def __call__(self, graph: Graph, found: dict[str, Value]) -> dict[str, Value]:
        """Add the nodes; return `boxes [B, P, 4]`, `scores`, `labels` and `valid [B, P]`.

        found: `boxes [B, A, 4]` and `scores [B, A, K]`.  P is at most `max_detections`.
        """
        node, constant = graph.node, graph.constant
        cells, classes = found["scores"].shape[1:]
        candidates = min(self.candidates, cells * classes)
        most = min(self.max_detections, candidates)
        corners = np.float32([self.width, self.height] * 2)
        boxes = node("Max", [graph.whole(found["boxes"]), constant(np.float32(0))])
        boxes = node("Min", [boxes, constant(corners)])
        flat = node("Reshape", [graph.whole(found["scores"]), constant(np.int64([0, -1]))])
        scores, places = graph.top_k(flat, candidates)
        labels = node("Mod", [places, constant(np.int64(classes))])
        boxes = graph.rows(boxes, node("Div", [places, constant(np.int64(classes))]))
        own = node(
            "Equal", [_unsqueeze(graph, labels, 1), constant(np.arange(classes)[None, :, None])]
        )
        of_class = node("Where", [own, _unsqueeze(graph, scores, 1), constant(np.float32(0))])
        limits = np.int64([most]), np.float32([self.iou_threshold])
        limits += (np.float32([self.score_threshold]),)
        kept = node("NonMaxSuppression", [boxes, of_class, *map(constant, limits)])
        kept = node("Gather", [kept, constant(np.int64([0, 2]))], axis=1)  # image, candidate
        ones = graph.filled(node("Shape", [kept], start=0, end=1), 1)
        mask = node("ScatterND", [graph.filled(node("Shape", [scores]), 0), kept, ones])
        scores, places = graph.top_k(node("Mul", [scores, mask]), most)
        valid = node("Greater", [scores, constant(np.float32(self.score_threshold))])
        labels = node("GatherElements", [labels, places], axis=1)
        labels = node("Cast", [labels], to=graph.onnx.TensorProto.INT32)
        shown = _unsqueeze(graph, valid, 2)

        def value(name, shape, dtype):
            return Value((BATCH, most, *shape), (BATCH, most, *shape), np.dtype(dtype), name)

        def masked(name, mask, dtype):
            return node("Where", [mask, name, constant(np.zeros((), dtype))])

        return {
            "boxes": value(masked(graph.rows(boxes, places), shown, "float32"), (4,), "float32"),
            "labels": value(masked(labels, valid, "int32"), (), "int32"),
            "scores": value(masked(scores, valid, "float32"), (), "float32"),
            "valid": value(valid, (), "bool"),
        }


def _unsqueeze(graph: Graph, name: str, axis: int) -> str:
    return graph.node("Unsqueeze", [name, graph.constant(np.int64([axis]))])
