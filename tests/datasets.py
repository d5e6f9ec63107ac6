"""Small data sets: the same photos of objects in every format that is read; labelled images."""

import io
import json

import numpy as np
from PIL import Image

CLASSES = ("cell", "dot")
SIZES = ((40, 60), (50, 30), (32, 32), (45, 45))  # height, width
BOXES = (  # (x0, y0, x1, y1), class
    (((4, 6, 20, 26), 0), ((30, 10, 50, 34), 1)),
    (((2, 3, 28, 44), 1),),
    (),
    (((10, 10, 12, 14), 0), ((0, 0, 45, 45), 1), ((20, 5, 40, 25), 0)),
)
PARTS = {"train": (0, 1, 2), "val": (3,)}


def photo(number):
    """Photo `number`: noise, objects in plain colours of their class."""
    height, width = SIZES[number]
    pixels = np.random.default_rng(number).integers(0, 90, (height, width, 3), np.uint8)
    for (x0, y0, x1, y1), label in BOXES[number]:
        pixels[y0:y1, x0:x1] = (250, 40, 40) if label == 0 else (40, 40, 250)
    return Image.fromarray(pixels)


def coco(root):
    """COCO: category numbers with a gap, one crowd box in the last photo."""
    (root / "annotations").mkdir(parents=True)
    numbers = {0: 3, 1: 7}
    categories = [{"id": numbers[i], "name": name} for i, name in enumerate(CLASSES)]
    for part, photos in PARTS.items():
        _save(root / part, photos, "png")
        annotations = []
        for i in photos:
            for k, ((x0, y0, x1, y1), label) in enumerate(BOXES[i]):
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": numbers[label]}
                annotations.append(box | {"id": len(annotations), "image_id": i, "iscrowd": k == 2})
        images = [{"id": i, "file_name": f"{i}.png"} for i in photos]
        told = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(told))
    for part in PARTS:
        (root / part).rename(root / f"{part}2017")


def voc(root):
    """Pascal VOC, the last box of the last photo difficult."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    _save(root / "JPEGImages", range(len(SIZES)), "png")
    for i, objects in enumerate(BOXES):
        nodes = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>{int(k == 2)}</difficult><bndbox>"
            f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for k, ((x0, y0, x1, y1), label) in enumerate(objects)
        )
        text = f"<annotation><filename>{i}.png</filename>{nodes}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    for part, photos in PARTS.items():
        text = "".join(f"{i}\n" for i in photos)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(text)


def yolo(root):
    """YOLO; a photo without objects has no text file."""
    for part, photos in PARTS.items():
        _save(root / "images" / part, photos, "png")
        (root / "labels" / part).mkdir(parents=True)
        for i in photos:
            height, width = SIZES[i]
            lines = [
                f"{label} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
                f"{(x1 - x0) / width} {(y1 - y0) / height}\n"
                for (x0, y0, x1, y1), label in BOXES[i]
            ]
            if lines:
                (root / "labels" / part / f"{i}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    places = "path: .\ntrain: images/train\nval: images/val\n"
    (root / "data.yaml").write_text(f"{places}names:\n{names}")


def parquet(root):
    """Parquet in the layout of the Halo set; one category a plain number where all are alike."""
    import pyarrow
    from pyarrow import parquet

    root.mkdir(parents=True)
    for part, photos in PARTS.items():
        rows = []
        for i in photos:
            packed = io.BytesIO()
            photo(i).save(packed, "PNG")
            boxes = [[x0, y0, x1 - x0, y1 - y0] for (x0, y0, x1, y1), _ in BOXES[i]]
            category = [label + 1 for _, label in BOXES[i]]
            image = {"bytes": packed.getvalue(), "path": f"{i}.png"}
            objects = {"bbox": boxes, "category": category}
            rows.append({"image": image, "image_id": i, "objects": objects})
        name = {"val": "validation"}.get(part, part)
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), root / f"{name}-00000-of-00001.parquet"
        )
    (root / "classes.txt").write_text("\n".join(CLASSES))


FORMATS = {"coco": coco, "voc": voc, "yolo": yolo, "parquet": parquet}


COLOURS = {"cat": (230, 60, 40), "dog": (40, 200, 60), "owl": (50, 60, 220)}


def labelled(root, train=12, test=4, side=32):
    """Images in `PART/CLASS/N.png`, so many a class in each part: its colour with noise."""
    random = np.random.default_rng(0)
    for part, count in {"train": train, "test": test}.items():
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(colour, 40, (side, side, 3)).clip(0, 255)
                Image.fromarray(np.uint8(pixels)).save(root / part / name / f"{i:02d}.png")
    return root


def _save(folder, photos, suffix):
    folder.mkdir(parents=True)
    for i in photos:
        photo(i).save(folder / f"{i}.{suffix}")
