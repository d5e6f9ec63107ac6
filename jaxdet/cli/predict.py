"""`jaxdet predict RUN`: predictions for image files, or for samples of the data.

Boxes are in pixels of the original image, except in YOLO files, where they are fractions of the
image's sides.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxdet import api
from jaxdet.cli import common, operating_point, predict_files, predict_submission
from jaxdet.cli.options import Predict, Process
from jaxdet.config import option
from jaxdet.data import images, threads
from jaxdet.errors import InputError, printable
from jaxdet.export.model import ExportedModel
from jaxdet.export.package import SUFFIX
from jaxdet.ops import boxes
from jaxdet.tasks.detect import DetectionTask
from jaxdet.training import evaluator
from jaxdet.training.experiment import Experiment
from jaxdet.types import Batch

MIN_IOU = 0.5  # a box with a lower IoU is a failure
DIGIT_CELL = 4, 16 / 6  # inches per digit: 30 of them fill 20 x 16 inches
TITLE_LENGTH = 40  # characters of a file name above a picture
SCORE_THRESHOLD = 0.25  # lowest score that is printed, drawn and cropped without --score-threshold
DETECTION_OPTIONS = ("save_txt", "save_json", "save_crop", "classes")


class Example(NamedTuple):
    """An image to predict, and its true label and boxes if they are known."""

    title: str
    prepared: api.PreparedImage
    read_picture: Callable[[], np.ndarray]  # [h, w, C] in [0, 1]: the original, to draw on
    label: int | None = None
    box: np.ndarray | None = None  # [4], or [n, 4] for detection, in pixels of the original

    @property
    def picture(self) -> np.ndarray:
        """The original image [h, w, C] in [0, 1], decoded on access: few predictions need it."""
        return self.read_picture()


Pair = tuple[Example, Any]  # an example and its prediction
Model = api.Run | ExportedModel


def run(options: Predict) -> int:
    """Print a prediction per image, and write the files that options name; returns the exit code.

    Image files are read, predicted and written in batches (--figure keeps all images in memory);
    the --count samples of a split are read at once.  If there are several images, unreadable ones
    are reported at the end, and the exit code is 1.
    """
    common.check_picture(options.figure, options.count)
    if options.sample and not options.submit:
        raise InputError("--sample needs --submit, the table to write")
    paths = images.expand_paths([*options.images, *options.filename])
    submission = predict_submission.list_files(options) if options.submit else None
    if applies_chosen := options.score_threshold == "chosen":
        options = replace(options, score_threshold=None)
    changes = {name: getattr(options, name) for name in ("canvas", "multiple")}
    if options.run.suffix == SUFFIX:
        run = _load_exported(options, paths)
    else:
        run = common.load(options, **{name: value for name, value in changes.items() if value})
        if options.align_faces:
            run = _aligning(run, paths)
    if submission and isinstance(run, api.Run):
        return predict_submission.run(run, options, *submission)
    thresholds = operating_point.read(run) if applies_chosen else None
    many = run.finds_many
    _check_options(run, options, many)
    split = options.split
    if isinstance(run, ExportedModel) or paths:
        experiment = run if isinstance(run, ExportedModel) else run.experiment
        rows = [row for path in paths for row in _list_rows(run, path)]
        if isinstance(run, api.Run):
            common.report_tiles(run, run.experiment, [path for path, *_ in rows])
        titles = [str(path) for path, *_ in rows]
        examples = _read_files(run, rows)
    else:
        experiment = run.with_data(root=options.root)
        common.report_tiles(run, experiment)
        split = common.choose_split(split, [*experiment.splits])
        samples = _read_samples(experiment, split, options.count, many)
        titles = [example.title for example in samples]
        examples = iter(samples)
    output = Output(run, options, titles)
    given_ids = getattr(experiment, "image_ids", None) or {}
    known_ids = {} if paths else given_ids.get(split, {})
    ids = predict_files.image_ids(titles, known_ids) if many else [None] * len(titles)
    categories = predict_files.categories(run, experiment) if options.save_json else []
    results, unread = [], []
    pairs = _counted(_predict(run, examples, len(titles)), len(titles))
    for (example, found), image_id in zip(pairs, ids, strict=True):
        if isinstance(example, InputError):
            unread.append(example)
            continue
        if many:
            found = _select_classes(found, options.classes, run.classes)
            least = options.score_threshold
            if thresholds is not None:
                found = _keep(found, found.scores >= thresholds[found.labels])
            elif least is not None:
                found = _keep(found, found.scores >= least)
            if options.save_json:
                results += predict_files.coco_results(found, categories, image_id, example.title)
            if thresholds is None and least is None:
                found = _keep(found, found.scores >= SCORE_THRESHOLD)
        elif not options.show_all_images and not is_failure(example, found):
            continue
        output.add(example, found)
    output.finish(results)
    for error in unread:
        print(f"jaxdet: error: {printable(str(error))}", file=sys.stderr)
    return 1 if unread else 0


def is_failure(example: Example, found: Any) -> bool:
    """Whether a prediction is known to be wrong, by its label or an IoU below `MIN_IOU`."""
    if example.label is None:
        return False
    if found.label != example.label:
        return True
    return example.box is not None and bool(boxes.iou(found.box, example.box) < MIN_IOU)


class Output:
    """Prints predictions and writes pictures and files."""

    def __init__(self, run: Model, options: Predict, titles: Sequence[str]):
        self.options, self.classes = options, run.classes
        self.many = run.finds_many
        self.cell = DIGIT_CELL if run.system == "digits" else None
        stems = [Path(title).stem for title in titles]
        self.repeated = {stem for stem, count in Counter(stems).items() if count > 1}
        self.pairs: list[Pair] = []  # kept for --figure
        self.count = 0

    def add(self, example: Example, found: Any) -> None:
        """Print the prediction for one image; write the files that the options ask for."""
        options, stem = self.options, Path(example.title).stem.replace(":", "_")
        numbered = not self.many or Path(example.title).stem in self.repeated
        stem = f"{self.count:04d}_{stem}" if numbered else stem
        if not self.count and not options.json:
            boxed = self.many or hasattr(found, "box")
            common.write_line(f"image label score{' x0 y0 x1 y1' * boxed}")
        self.count += 1
        common.write_line("\n".join(self._lines(example, found)))
        if options.figure:
            self.pairs.append((example, found))
        if options.save_dir:
            self._draw_one(example, found, options.save_dir / f"{stem}.png")
        elif options.filename and not options.figure and os.environ.get("DISPLAY"):
            self._show(example, found)
        if options.save_txt:
            path = options.save_txt / f"{stem}.txt"
            predict_files.write_yolo(path, found, example.prepared.size)
        if options.save_crop:
            folder = options.save_crop
            predict_files.write_crops(folder, stem, example.picture, found, self.classes)

    def finish(self, results: list[dict[str, Any]]) -> None:
        """Write the files that cover all images, and print which files were written."""
        options, wrote = self.options, []
        if options.figure and self.pairs:
            self._draw(self.pairs, options.figure)
            wrote.append(str(options.figure))
        folders = (options.save_dir, options.save_txt, options.save_crop)
        wrote += [f"predictions of {self.count} images to {folder}" for folder in folders if folder]
        if options.save_json:
            options.save_json.parent.mkdir(parents=True, exist_ok=True)
            options.save_json.write_text(json.dumps(results))
            wrote.append(str(options.save_json))
        if wrote and not options.json:
            print("wrote", ", ".join(wrote))

    def _lines(self, example: Example, found: Any) -> list[str]:
        """The lines to print for an image: a JSON object, or one line per label or detection."""
        if self.many:
            columns = zip(found.labels, found.scores, found.boxes, strict=True)
            objects = [self._fields(*of_object) for of_object in columns]
            record = {"objects": objects}
        else:
            record = self._fields(found.label, found.score, getattr(found, "box", None))
            objects = [record]
        if self.options.json:
            return [json.dumps({"image": example.title, **record})]
        title = printable(example.title)
        if not objects:
            return [f"{title} nothing"]
        return [
            " ".join(map(str, (title, of["label"], of["score"], *of.get("box", ()))))
            for of in objects
        ]

    def _fields(self, label: Any, score: Any, box: Any) -> dict[str, Any]:
        fields = {"label": self.classes[int(label)], "score": round(float(score), 4)}
        return fields if box is None else {**fields, "box": predict_files.rounded(box)}

    def _draw_one(self, example: Example, found: Any, path: Path) -> None:
        from jaxdet.plots import detection as detection_plots

        if not self.many:
            self._draw([(example, found)], path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = self._texts(found)
        detection_plots.annotated_image(
            example.picture, path, example.box, found.boxes, texts, found.labels
        )

    def _show(self, example: Example, found: Any) -> None:
        """Show one picture in a window, and wait until it is closed."""
        from jaxdet.plots import detection as detection_plots

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            self._draw([(example, found)], path)
            detection_plots.show_file(path)

    def _draw(self, pairs: Sequence[Pair], path: Path) -> None:
        pictures = [example.picture for example, _ in pairs]
        shown: dict[str, Any] = {
            "titles": [self._title(*pair) for pair in pairs],
            "true": [example.box for example, _ in pairs],
        }
        if self.many:
            shown |= {
                "predicted": [found.boxes for _, found in pairs],
                "texts": [self._texts(found) for _, found in pairs],
                "labels": [found.labels for _, found in pairs],
                **common.large_cells(pictures),
            }
        else:
            shown["predicted"] = [getattr(found, "box", None) for _, found in pairs]
            shown["wrong"] = [is_failure(*pair) for pair in pairs]
            shown["cell"] = self.cell
        common.draw(pictures, path, **shown, quiet=True)

    def _title(self, example: Example, found: Any) -> str:
        if not self.many:
            true = [] if example.label is None else [f"true {self.classes[example.label]}"]
            return ", ".join([*true, f"predicted {self.classes[found.label]}"])
        name = Path(example.title).name
        name = name if len(name) <= TITLE_LENGTH else f"...{name[3 - TITLE_LENGTH :]}"
        return f"{name}: {len(found.labels)} found"

    def _texts(self, found: api.Detections) -> list[str]:
        pairs = zip(found.labels, found.scores, strict=True)
        return [f"{self.classes[label]} {score:.2f}" for label, score in pairs]


def _load_exported(options: Predict, paths: Sequence[Path]) -> ExportedModel:
    """Load a `.jaxdet` file; InputError for options that need a run, or without images."""
    kept = {"run", "images", "filename", *DETECTION_OPTIONS, "score_threshold", "show_all_images"}
    kept |= {"save_dir", "figure", "json", "count", *(field.name for field in fields(Process))}
    for field in fields(options):
        if field.name not in kept and getattr(options, field.name) != field.default:
            raise InputError(
                f"{option(field.name)} needs a run: the program in {options.run} is fixed"
            )
    if not paths:
        raise InputError(f"{options.run} has no data; give images to predict")
    model = api.load_exported(options.run)
    if "scores" in model.package.description["outputs"] and not model.finds_many:
        raise InputError(
            f"{options.run} has no non-maximum suppression; export it again with --nms true"
        )
    return model


def _aligning(run: api.Run, paths: Sequence[Path]) -> api.Run:
    """The run, aligning faces; InputError without images to align."""
    if not paths:
        raise InputError("--align-faces needs images; align the data with `jaxdet data align`")
    return run.with_aligned_faces()


def _check_options(run: Model, options: Predict, many: bool) -> None:
    given = [name for name in DETECTION_OPTIONS if getattr(options, name) and not many]
    if given:
        name = given[0].replace("_", "-")
        kind = "detect, or of digits with --multiple"
        raise InputError(f"--{name} needs a run of {kind}, got a run of {run.system}")
    for name in options.classes:
        if name not in run.classes:
            raise InputError(f"--classes must be among {', '.join(run.classes)}, got {name}")


def _list_rows(run: Model, path: Path) -> list[tuple]:
    """(path, label, box) per image; label and box are None for an image file."""
    if path.suffix.lower() != ".csv":
        return [(path, None, None)]
    read_table = run.experiment.read_table if isinstance(run, api.Run) else None
    if read_table is None:
        raise InputError(f"{path}: must be an image for a run of {run.system}, got a table")
    return read_table(path)


def _read_files(run: Model, rows: Sequence[tuple]) -> Iterator[Example | InputError]:
    """Yield an example per file; among several files, an InputError for an unreadable file."""
    read = partial(_read_file if len(rows) == 1 else _try_to_read_file, run)
    for batch in threads.map_batches(read, rows, api.PREDICT_BATCH):
        yield from batch


def _try_to_read_file(run: Model, row: tuple) -> Example | InputError:
    try:
        return _read_file(run, row)
    except InputError as error:
        return error


def _read_file(run: Model, row: tuple) -> Example:
    path, label, box = row
    box = None if box is None else np.asarray(box, np.float32)
    return Example(str(path), run.prepare(path), partial(images.read_float, path), label, box)


def _read_samples(experiment: Experiment, split: str, count: int, many: bool) -> list[Example]:
    """The first samples of a split, prepared as for evaluation, with true labels and boxes."""
    source, batch = experiment.splits[split], evaluator.samples(experiment, split, count)
    examples, inputs = [], [*batch["image"]]
    if isinstance(experiment.task, DetectionTask):
        sides = np.asarray(experiment.task.extents(batch)).tolist()
        inputs = [
            image[:rows, :columns] for image, (rows, columns) in zip(inputs, sides, strict=True)
        ]
    for i, image in enumerate(inputs):
        title = source.names[i] if source.names else f"{split}:{batch['id'][i]}"
        prepared = _prepared_sample(image, batch, i)
        label, box = None if many else batch["label"][i], None
        if "true_boxes" in batch:
            box = batch["true_boxes"][i][batch["true_valid"][i]]
        elif "boxes" in batch and boxes.area(batch["boxes"][i, 0]) > 0:
            own = batch["boxes"][i] if many else batch["boxes"][i, 0]
            box = own * prepared.scale + prepared.offset
        read = partial(_original_picture, prepared)
        if experiment.read_original:
            read = partial(experiment.read_original, title)
        examples.append(Example(title, prepared, read, label, box))
    return examples


def _prepared_sample(image: np.ndarray, batch: Batch, i: int) -> api.PreparedImage:
    size = tuple(map(int, batch["size"][i])) if "size" in batch else image.shape[:2]
    if "to_original" in batch:
        scale, offset = (np.tile(part, 2) for part in np.split(batch["to_original"][i], 2))
        return api.PreparedImage(image, size, scale, offset)
    scale = np.tile(np.asarray(size, np.float32) / image.shape[:2], 2)[[1, 0, 3, 2]]
    return api.PreparedImage(image, size, scale, np.zeros(4, np.float32))


def _original_picture(prepared: api.PreparedImage) -> np.ndarray:
    """The network's input without padding, resized to the size of the original image."""
    image, (height, width) = prepared.image, prepared.size
    if image.shape[:2] == (height, width):
        return image
    left, top = np.rint(-prepared.offset[:2] / prepared.scale[:2]).astype(int)
    columns, rows = np.rint([width, height] / prepared.scale[:2]).astype(int)
    inside = np.rint(image * 255).astype(np.uint8)[top : top + rows, left : left + columns]
    return np.asarray(Image.fromarray(inside).resize((width, height))) / np.float32(255)


def _predict(
    run: Model, examples: Iterator[Example | InputError], count: int
) -> Iterator[Pair | tuple[InputError, None]]:
    """Yield (example, prediction), predicted in batches; (error, None) for an unreadable file."""
    size = 1 if count == 1 else api.PREDICT_BATCH
    while batch := list(islice(examples, size)):
        read = [example for example in batch if isinstance(example, Example)]
        found = iter(run.predict_prepared([example.prepared for example in read], size))
        for example in batch:
            if isinstance(example, Example):
                yield example, next(found)
            else:
                yield example, None


def _counted(pairs: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the pairs unchanged and, on a terminal, show a progress bar."""
    with common.counting(count) as advance:
        for pair in pairs:
            yield pair
            advance(1)


def _select_classes(
    found: api.Detections, names: Sequence[str], classes: Sequence[str]
) -> api.Detections:
    """The detections of the classes called `names`; all detections if `names` is empty."""
    if not names:
        return found
    return _keep(found, np.isin(found.labels, [classes.index(name) for name in names]))


def _keep(found: api.Detections, on: np.ndarray) -> api.Detections:
    """The detections where the mask [N] is true."""
    return api.Detections(*(column[on] for column in found))
