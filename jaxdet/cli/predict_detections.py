"""`jaxdet predict RUN` for runs that find many boxes: lines, pictures, files in others' formats.

Boxes are in pixels of the original photos everywhere.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxdet.cli import common
from jaxdet.data import images
from jaxdet.errors import InputError
from jaxdet.training import evaluator, run_dir


class Photo(NamedTuple):
    """A photo to answer for."""

    title: str
    image: Any  # [H, W, 3] as the network takes it
    picture: Any  # [h, w, 3] levels to draw on, as large as the photo is
    back: Any  # [4] from the network's pixels to those of the photo
    true: Any = None  # [n, 4] in pixels of the photo, where they are known


class Found(NamedTuple):
    """What is in a photo, best first."""

    boxes: np.ndarray  # [n, 4] in pixels of the photo
    scores: np.ndarray  # [n]
    labels: np.ndarray  # [n]


def check(options):
    """Refuse classes that the run has not learnt, before its network is made."""
    if options.classes:
        _wanted(options.classes, run_dir.read_metadata(options.run)["classes"])


def run(options, system, state, paths):
    """Print a line a box, and write what was asked for, one photo after the other.

    paths: image files, or none for samples of a split.  Only --figure holds all photos.
    """
    known = {} if paths else (system.numbers or {}).get(options.split, {})
    names = system.about["classes"]
    wanted, categories = _wanted(options.classes, names), _categories(options.run, system)
    answer = jax.jit(partial(system.task.predict, evaluator.eval_variables(state)))
    photos = (_file(system, path) for path in paths)
    if not paths:
        photos = _samples(system, options)
        paths = [photo.title for photo in photos]
    kept, told = [], []
    for photo, stem, number in zip(photos, _stems(paths), _numbers(paths, known), strict=True):
        found = _found(answer, photo, wanted)
        _tell(options.json, names, photo, found)
        _write(options, names, stem, photo, found)
        kept += [(photo, found)] if options.figure else []
        told += _coco(categories, number, photo, found) if options.save_json else []
    _finish(options, names, kept, told, len(paths))
    return 0


def _wanted(classes, names):
    """Indices of the classes that are asked for."""
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise InputError(f"--classes {unknown[0]}: the run has {', '.join(names)}")
    return [i for i, name in enumerate(names) if not classes or name in classes]


def _stems(paths):
    """What the files of each photo are called: as it is, or with its place where two are alike."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{i:04d}_{stem}" for i, stem in enumerate(stems)]


def _categories(folder, system):
    """[(id, name)] of the classes for COCO: ids of the data, or of those of the run, or from 1."""
    names = system.about["classes"]
    numbers = system.about.get("numbers") or run_dir.read_metadata(folder).get("numbers")
    return list(zip(numbers or range(1, len(names) + 1), names, strict=True))


def _numbers(paths, known):
    """Ids of photos for COCO: those `known` by their names, if they are of all.

    Or else what they are called where that is numbers, as COCO's own are, or their places.
    """
    if len({known.get(path) for path in paths} - {None}) == len(paths):
        return [known[path] for path in paths]
    stems = [Path(path).stem for path in paths]
    if all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(len(stems)))


def _file(system, path):
    image, size = system.read(path)
    scale, offset = images.letterbox_transform(size, *image.shape[:2])
    back = np.concatenate([1 / scale, -offset / scale])
    return Photo(str(path), image, images.read_float(path), back)


def _samples(system, options):
    """The first photos of a split, with what is true of them."""
    source = system.splits[options.split]
    rows = evaluator.samples(system, options.split, options.count)
    out = []
    for i, image in enumerate(rows["image"]):
        back = rows["to_original"][i]
        height, width = rows["size"][i]
        left, top = np.rint(-back[2:] / back[:2]).astype(int)
        across, down = np.rint(np.array([width, height]) / back[:2]).astype(int)
        picture = np.asarray(
            Image.fromarray(
                np.uint8(np.rint(image * 255))[top : top + down, left : left + across]
            ).resize((int(width), int(height)))
        )
        true = _moved(rows["boxes"][i][rows["valid"][i]], back)
        out.append(Photo(source.names[i], image, picture / np.float32(255), back, true))
    return out


def _moved(boxes, back):
    """Boxes [n, 4] of the network's input in pixels of the photo."""
    return np.asarray(boxes) * np.tile(back[:2], 2)[None] + np.tile(back[2:], 2)[None]


def _found(answer, photo, wanted):
    rows = jax.tree.map(lambda leaf: leaf[0], jax.device_get(answer(photo.image[None])))
    on = rows["valid"] & np.isin(rows["labels"], wanted)
    height, width = photo.picture.shape[:2]
    boxes = np.clip(_moved(rows["boxes"][on], photo.back), 0, np.tile([width, height], 2)[None])
    return Found(boxes, rows["scores"][on], rows["labels"][on])


def _tell(as_json, names, photo, found):
    """A line a box: photo, class, score, x0 y0 x1 y1; or a JSON object a photo."""
    rows = [
        {"label": names[label], "score": round(float(score), 4), "box": _rounded(box)}
        for box, score, label in zip(*found, strict=True)
    ]
    if as_json:
        print(json.dumps({"image": photo.title, "objects": rows}))
    for row in [] if as_json else rows:
        print(photo.title, row["label"], row["score"], *row["box"])
    if not rows and not as_json:
        print(photo.title, "nothing")


def _rounded(box):
    return [round(float(value), 2) for value in box]


def _write(options, names, stem, photo, found):
    """The files of one photo: a picture, and files of boxes."""
    for folder, write in (
        (options.save_dir, _picture),
        (options.save_txt, _text),
        (options.save_crop, _crops),
    ):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, stem, names, photo, found)


def _finish(options, names, kept, told, count):
    """The files of all photos, and a line that says what was written."""
    wrote = []
    if options.figure:
        _draw(names, kept, options.figure)
        wrote.append(str(options.figure))
    folders = (options.save_dir, options.save_txt, options.save_crop)
    wrote += [f"{count} photos to {folder}" for folder in folders if folder]
    if options.save_json:
        options.save_json.parent.mkdir(parents=True, exist_ok=True)
        options.save_json.write_text(json.dumps(told))
        wrote.append(str(options.save_json))
    if wrote and not options.json:
        print("wrote", ", ".join(wrote))


def _draw(names, pairs, path):
    pictures = [photo.picture for photo, _ in pairs]
    common.draw(
        pictures,
        path,
        titles=[_title(photo, found) for photo, found in pairs],
        true=[photo.true for photo, _ in pairs],
        predicted=[found.boxes for _, found in pairs],
        texts=[_texts(names, found) for _, found in pairs],
        labels=[found.labels for _, found in pairs],
        **common.sheet(pictures),
        quiet=True,
    )


def _title(photo, found, longest=40):
    """The name of a photo, cut where it is long, and how many boxes were found."""
    name = Path(photo.title).name
    name = name if len(name) <= longest else f"...{name[3 - longest :]}"
    return f"{name}: {len(found.labels)} found"


def _texts(names, found):
    return [f"{names[i]} {score:.2f}" for i, score in zip(found.labels, found.scores, strict=True)]


def _picture(folder, stem, names, photo, found):
    from jaxdet.plots import detection as detection_plots

    texts = _texts(names, found)
    path = folder / f"{stem}.png"
    detection_plots.annotated_image(
        photo.picture, path, photo.true, found.boxes, texts, found.labels
    )


def _text(folder, stem, names, photo, found):
    """The YOLO form: class, centre, sides in shares of the photo, score."""
    height, width = photo.picture.shape[:2]
    lines = []
    for (x0, y0, x1, y1), score, label in zip(*found, strict=True):
        shape = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in (*shape, score))]))
    (folder / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))


def _crops(folder, stem, names, photo, found):
    """One file a box: what is inside of it."""
    levels = np.uint8(np.rint(photo.picture * 255))
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if x1 > x0 and y1 > y0:
            name = f"{stem}_{i:02d}_{names[label]}.png".replace("/", "_")
            Image.fromarray(levels[y0:y1, x0:x1]).save(folder / name)


def _coco(categories, number, photo, found):
    """COCO's results of photo `number`; categories [(id, name)] by label."""
    out = []
    for (x0, y0, x1, y1), score, label in zip(*found, strict=True):
        box, (category, name) = _rounded((x0, y0, x1 - x0, y1 - y0)), categories[label]
        one = {"image_id": number, "file_name": photo.title, "category_id": category}
        out.append(one | {"category": name, "bbox": box, "score": float(score)})
    return out
