"""Small data sets for tests.

The same annotated images in every detection format, colored images in folders of classes, trees of
files in a folder or tar file, and sets of tensorflow-datasets.
"""

import base64
import gzip
import io
import json
import tarfile

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
SPLITS = {"train": (0, 1, 2), "val": (3,)}


def draw_image(number):
    """Annotated image `number`: noise, with red cells and blue dots."""
    height, width = SIZES[number]
    pixels = np.random.default_rng(number).integers(0, 90, (height, width, 3), np.uint8)
    for (x0, y0, x1, y1), label in BOXES[number]:
        pixels[y0:y1, x0:x1] = (250, 40, 40) if label == 0 else (40, 40, 250)
    return Image.fromarray(pixels)


def png_bytes(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write_coco(root):
    """COCO: category ids with a gap, and a crowd box in the last image."""
    (root / "annotations").mkdir(parents=True)
    category_ids = {0: 3, 1: 7}
    categories = [{"id": category_ids[i], "name": name} for i, name in enumerate(CLASSES)]
    for split, numbers in SPLITS.items():
        _save_images(root / f"{split}2017", numbers)
        annotations = []
        for i in numbers:
            for k, ((x0, y0, x1, y1), label) in enumerate(BOXES[i]):
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": category_ids[label]}
                annotations.append(box | {"id": len(annotations), "image_id": i, "iscrowd": k == 2})
        images = [{"id": i, "file_name": f"{i}.png"} for i in numbers]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))


def write_voc(root):
    """Pascal VOC: the last box of the last image is difficult."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    _save_images(root / "JPEGImages", range(len(SIZES)))
    for i, objects in enumerate(BOXES):
        nodes = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>{int(k == 2)}</difficult><bndbox>"
            f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for k, ((x0, y0, x1, y1), label) in enumerate(objects)
        )
        text = f"<annotation><filename>{i}.png</filename>{nodes}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    for split, numbers in SPLITS.items():
        text = "".join(f"{i}\n" for i in numbers)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)


def write_yolo(root):
    """YOLO: an image without objects has no text file."""
    for split, numbers in SPLITS.items():
        _save_images(root / "images" / split, numbers)
        (root / "labels" / split).mkdir(parents=True)
        for i in numbers:
            height, width = SIZES[i]
            lines = [
                f"{label} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
                f"{(x1 - x0) / width} {(y1 - y0) / height}\n"
                for (x0, y0, x1, y1), label in BOXES[i]
            ]
            if lines:
                (root / "labels" / split / f"{i}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    folders = "path: .\ntrain: images/train\nval: images/val\n"
    (root / "data.yaml").write_text(f"{folders}names:\n{names}")


def write_parquet(root):
    """Parquet: a row per image, categories counting from 1."""
    import pyarrow
    from pyarrow import parquet

    root.mkdir(parents=True)
    for split, numbers in SPLITS.items():
        rows = []
        for i in numbers:
            bbox = [[x0, y0, x1 - x0, y1 - y0] for (x0, y0, x1, y1), _ in BOXES[i]]
            category = [label + 1 for _, label in BOXES[i]]
            image = {"bytes": png_bytes(draw_image(i)), "path": f"{i}.png"}
            objects = {"bbox": bbox, "category": category}
            rows.append({"image": image, "image_id": i, "objects": objects})
        name = {"val": "validation"}.get(split, split)
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), root / f"{name}-00000-of-00001.parquet"
        )
    (root / "classes.txt").write_text("\n".join(CLASSES))


def write_labelme(root):
    """LabelMe: the last box of the last image is difficult; image 1 is inside its JSON file."""
    for split, numbers in SPLITS.items():
        (root / split).mkdir(parents=True)
        for i in numbers:
            shapes = [
                {"label": CLASSES[label], "shape_type": "rectangle", "difficult": k == 2}
                | {"points": [[x1, y1], [x0, y0]]}
                for k, ((x0, y0, x1, y1), label) in enumerate(BOXES[i])
            ]
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{i}.png"}
            content |= dict(zip(("imageHeight", "imageWidth"), SIZES[i], strict=True))
            if i == 1:
                content["imageData"] = base64.b64encode(png_bytes(draw_image(i))).decode()
            else:
                draw_image(i).save(root / split / f"{i}.png")
            (root / split / f"{i}.json").write_text(json.dumps(content))


def write_cvat(root):
    """CVAT for images: one file with subsets; the last box of the last image is difficult."""
    nodes = []
    for split, numbers in SPLITS.items():
        _save_images(root / "images" / split, numbers)
        for i in numbers:
            shapes = "".join(
                f'<box label="{CLASSES[label]}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}">'
                f'<attribute name="difficult">{"true" if k == 2 else "false"}</attribute></box>'
                for k, ((x0, y0, x1, y1), label) in enumerate(BOXES[i])
            )
            height, width = SIZES[i]
            attributes = f'name="{i}.png" subset="{split}" width="{width}" height="{height}"'
            nodes.append(f"<image {attributes}>{shapes}</image>")
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><project><labels>{labels}</labels></project></meta>"
    text = f"<annotations><version>1.1</version>{meta}{''.join(nodes)}</annotations>"
    (root / "annotations.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}')


def write_csv(root):
    """CSV: a table with a heading and one without; an image without objects has a row."""
    for split, numbers in SPLITS.items():
        _save_images(root / "images" / split, numbers)
        rows = [["file", "x0", "y0", "x1", "y1", "label"]] if split == "train" else []
        for i in numbers:
            name = f"{split}/{i}.png"
            rows += [[name, *box, CLASSES[label]] for box, label in BOXES[i]]
            rows += [] if BOXES[i] else [[name, *[""] * 5]]
        text = "".join(f"{','.join(map(str, row))}\n" for row in rows)
        (root / f"{split}.csv").write_text(text)


FORMATS = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "parquet": write_parquet,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "csv": write_csv,
}
MARKED = ("coco", "voc", "labelme", "cvat")  # the last object of the last image is marked


COLORS = {"cat": (230, 60, 40), "dog": (40, 200, 60), "owl": (50, 60, 220)}


def write_image_folder(root, train=12, test=4, side=32):
    """Images SPLIT/CLASS/N.png of the color of their class with noise, so many of each class."""
    random = np.random.default_rng(0)
    for split, count in {"train": train, "test": test}.items():
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(color, 40, (side, side, 3)).clip(0, 255)
                Image.fromarray(np.uint8(pixels)).save(root / split / name / f"{i:02d}.png")
    return root


def encode_image(seed=100, size=(6, 8), mode="RGB", kind="PNG", **options):
    """The bytes of an image of `size` (height, width): noise from 0 to `seed`."""
    pixels = np.random.default_rng(seed).integers(0, seed + 1, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tree(folder, files):
    """Write files, {name: bytes}, and folders, {name: None}, into a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    return folder


def encode_tar(files, last=()):
    """The bytes of a tar file of `files`, as for `write_tree`, and of the members `last`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
        for member in last:
            tar.addfile(member)
    return buffer.getvalue()


def write_tar(path, files):
    """`write_tree` into a tar file."""
    path.write_bytes(encode_tar(files))
    return path


def write_tar_gz(path, files):
    """`write_tree` into a gzipped tar file."""
    path.write_bytes(gzip.compress(encode_tar(files)))
    return path


def below(folder, files):
    """The files of a tree moved into a folder."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def encode_constant(value, shape):
    """The bytes of a PNG whose pixels all have one value."""
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8).squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def prepare_tfds(folder, set_name, features, examples):
    """Prepare a set of tensorflow-datasets: features by name, {split: list of examples}."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():  # sets are found by their files alone

        class Tiny(tfds.core.GeneratorBasedBuilder):
            __module__ = "__main__"  # found in a package, it would need importlib_resources
            VERSION = tfds.core.Version("1.0.0")
            name = set_name

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(rows) for split, rows in examples.items()}

            def _generate_examples(self, rows):
                yield from enumerate(rows)

        Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


TFDS_ROWS = {"train": 12, "test": 65}


def prepare_tfds_images(folder, name, shape=(6, 4, 1), classes=10, label="label"):
    """A set of `TFDS_ROWS` images: row i has the pixel value i and the class i mod `classes`."""
    import tensorflow_datasets as tfds

    sides = [side or 5 for side in shape]
    features = {
        "image": tfds.features.Image(shape=shape),
        label: tfds.features.ClassLabel(num_classes=classes),
    }
    examples = {
        split: [{"image": encode_constant(i, sides), label: i % classes} for i in range(count)]
        for split, count in TFDS_ROWS.items()
    }
    prepare_tfds(folder, name, features, examples)


def _save_images(folder, numbers):
    folder.mkdir(parents=True)
    for i in numbers:
        draw_image(i).save(folder / f"{i}.png")
