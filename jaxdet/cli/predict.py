"""`jaxdet predict RUN`: answers for image files, or samples of the data."""

import json
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet.cli import common, predict_detections, predict_submission
from jaxdet.data import images
from jaxdet.errors import InputError
from jaxdet.ops import boxes
from jaxdet.training import evaluator

ENOUGH = 0.5  # IoU from which a box counts as found


class Shown(NamedTuple):
    """An image to answer for."""

    title: str
    image: Any  # [H, W, C] as the network takes it
    picture: Any  # [H, W, C] to draw on
    told: Any  # [4]: from the network's pixels to those that are printed
    drawn: Any  # [4]: from the network's pixels to those of the picture
    label: int | None = None
    box: Any = None  # [4] the true one, in the network's pixels


def run(options):
    """Print an answer an image, and draw what was asked for."""
    common.check_picture(options.figure, options.count)
    predict_detections.check(options)
    changes = {"canvas": options.canvas} if options.canvas else {}
    paths = images.expand_paths([*options.images, *options.filename])
    changes |= common.judged(options)
    if options.sample and not options.submit:
        raise InputError("--sample: its rows are for --submit")
    to_submit = predict_submission.listed(options) if options.submit else ()
    config, system, _, state = common.restored(options, data=not paths, **changes)
    if to_submit:
        return predict_submission.classified(options, config, system, state, *to_submit)
    if system.many:
        return predict_detections.run(options, system, state, paths)
    names, answer = system.about["classes"], jax.jit(system.task.predict)
    answer = partial(answer, evaluator.eval_variables(state))
    shown = _files(system, paths) if paths else _samples(system, options)
    found = [_alone(answer(one.image[None])) for one in shown]
    pairs = list(zip(shown, found, strict=True))
    if not options.show_all_images:
        pairs = [(one, row) for one, row in pairs if _failed(one, row)]
    for one, row in pairs:
        _tell(options.json, names, one, row)
    _pictures(options, names, pairs)
    return 0


def _samples(system, options):
    """The first samples of a split, as every evaluation draws them."""
    source = system.splits[options.split]
    rows = evaluator.samples(system, options.split, options.count)
    out = []
    for i, image in enumerate(rows["image"]):
        title = source.names[i] if source.names else f"{options.split}:{rows['id'][i]}"
        told = _scale(rows["size"][i], image) if "size" in rows else np.ones(4)
        box = rows["boxes"][i, 0] if "boxes" in rows else None
        out.append(Shown(title, image, image, told, np.ones(4), rows["label"][i], box))
    return out


def _files(system, paths):
    """Image files, and those that tables name."""
    out = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            out += [_file(system, *row) for row in _table(system, path)]
        else:
            out.append(_file(system, path))
    return out


def _table(system, path):
    if system.table is None:
        raise InputError(f"{path}: a run of this system answers for images, not for tables")
    return system.table(path)


def _file(system, path, label=None, box=None):
    """An image file, with what its table says of it; `box` in its own pixels."""
    image, size = system.read(path)
    told = _scale(size, image)
    true = None if box is None else np.asarray(box, np.float32) / told
    return Shown(str(path), image, images.read_float(path), told, told, label, true)


def _scale(size, image):
    """[4]: from pixels of an input to those of an image of `size` (height, width)."""
    return np.tile(np.asarray(size, np.float32) / image.shape[:2], 2)[[1, 0, 3, 2]]


def _alone(answers):
    """The one answer of a batch of one, on the host."""
    return jax.tree.map(lambda leaf: leaf[0], jax.device_get(answers))


def _failed(one, row):
    """Whether an answer is known to be wrong: its label, or its box."""
    if one.label is None:
        return False
    if row["label"] != one.label:
        return True
    return one.box is not None and bool(boxes.iou(row["box"], one.box) < ENOUGH)


def _tell(as_json, names, one, row):
    """One answer in one line: name, label, score and, if it has one, its box x0 y0 x1 y1."""
    answer = {"label": names[int(row["label"])], "score": round(float(row["score"]), 4)}
    box = [round(float(v), 2) for v in row["box"] * one.told] if "box" in row else []
    if as_json:
        print(json.dumps({"image": one.title, **answer, **({"box": box} if box else {})}))
    else:
        print(one.title, *answer.values(), *box)


def _pictures(options, names, pairs):
    """All in one figure, or one file an image, or one window after the other."""
    draw = partial(_draw, names, quiet=options.json)
    if options.figure and pairs:
        draw(pairs, options.figure)
    if options.save_dir:
        for i, pair in enumerate(pairs):
            word = re.sub(r"[^\w.-]+", "_", Path(pair[0].title).stem)
            draw([pair], options.save_dir / f"{i:04d}_{word}.png", quiet=True)
        if not options.json:
            print(f"wrote {len(pairs)} pictures to {options.save_dir}")
    elif options.filename and not options.figure and os.environ.get("DISPLAY"):
        _windows(draw, pairs)


def _windows(draw, pairs):
    """Every picture in a window, until it is closed."""
    from jaxdet.plots import detection as detection_plots

    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs:
            path = Path(folder) / "picture.png"
            draw([pair], path, quiet=True)
            detection_plots.show_file(path)


def _draw(names, pairs, path, *, quiet):
    """Pictures with what is true of them and what was found; titles of wrong answers are red."""
    titles = []
    for one, row in pairs:
        true = [] if one.label is None else [f"true {names[one.label]}"]
        titles.append(", ".join([*true, f"predicted {names[row['label']]}"]))
    common.draw(
        [one.picture for one, _ in pairs],
        path,
        titles=titles,
        true=[None if one.box is None else one.box * one.drawn for one, _ in pairs],
        predicted=[row["box"] * one.drawn if "box" in row else None for one, row in pairs],
        wrong=[_failed(one, row) for one, row in pairs],
        quiet=quiet,
    )
