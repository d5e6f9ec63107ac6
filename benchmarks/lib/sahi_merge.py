"""SAHI's slices of an image, and its merging of their boxes, in the environment that has SAHI.

    PYTHON sahi_merge.py slices HEIGHT WIDTH SLICE_HEIGHT SLICE_WIDTH OVERLAP
    PYTHON sahi_merge.py merge FOLDER HEIGHT WIDTH

`slices` prints the boxes of the slices as JSON. `merge` reads every FOLDER/NAME.npz, with the
arrays `boxes` [N, 4] (in pixels of the image of HEIGHT x WIDTH), `scores` and `labels` [N], and
writes FOLDER/NAME-METHOD.merged, an NPZ file with the same arrays after each of `METHODS`. Imports
nothing of jaxdet.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sahi.postprocess.combine import GreedyNMMPostprocess, NMSPostprocess
from sahi.prediction import ObjectPrediction
from sahi.slicing import get_slice_bboxes

METHODS = {  # with the thresholds of `sahi.predict.get_sliced_prediction`
    "nms": NMSPostprocess(0.5, "IOU", class_agnostic=False),
    "greedy_nmm": GreedyNMMPostprocess(0.5, "IOS", class_agnostic=False),
}


def main(command: str, *words: str) -> None:
    if command == "slices":
        *sides, overlap = words
        print(json.dumps(get_slice_bboxes(*map(int, sides), False, *[float(overlap)] * 2)))
        return
    folder, height, width = words
    for path in sorted(Path(folder).glob("*.npz")):
        given = dict(np.load(path))
        rows = zip(given["boxes"], given["scores"], given["labels"], strict=True)
        boxes = [
            ObjectPrediction(
                bbox=box.tolist(),
                category_id=int(label),
                category_name=str(label),
                score=float(score),
                full_shape=[int(height), int(width)],
            )
            for box, score, label in rows
        ]
        for name, merge in METHODS.items():
            kept = merge(boxes)
            with path.with_name(f"{path.stem}-{name}.merged").open("wb") as file:
                np.savez(
                    file,
                    boxes=np.float32([one.bbox.to_xyxy() for one in kept]).reshape(-1, 4),
                    scores=np.float32([one.score.value for one in kept]),
                    labels=np.int32([one.category.id for one in kept]),
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
