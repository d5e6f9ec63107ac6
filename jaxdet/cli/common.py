"""Helpers used by several commands: restoring a run, tables of classes, pictures."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet import api, runs
from jaxdet.cli.options import Export, Restored
from jaxdet.config import option
from jaxdet.data import image_sizes, images
from jaxdet.errors import InputError, printable
from jaxdet.models import registry
from jaxdet.training import parallel
from jaxdet.training.evaluator import Evaluator
from jaxdet.training.experiment import Experiment
from jaxdet.types import Array

CHANGES = (
    "score_threshold",
    "nms_iou",
    "nms_type",
    "tiles",
    "overlap",
    "window_selection",
    "tta",
    "devices",
    "eval_batch",
)  # options that, if given, replace the options of the run
COLUMNS = 4  # number of columns in a figure of images with many boxes
CELL_HEIGHT, TITLE_HEIGHT = 4.0, 0.3  # inches; height of an image, and of the title above it


def load(options: Restored, **changes: Any) -> api.Run:
    """Load the run and checkpoint, or the published detector, that the options name, without data.

    Options that are given, and `changes`, replace the run's options.  Raises InputError for an
    option that does not apply to the run.
    """
    changes |= given_changes(options)
    if options.root:
        changes |= {"root": runs.absolute(options.root)}
    if published := load_published(options, **changes):
        return published
    run = api.load(options.run, options.checkpoint, warn=warn, **changes)
    without_use = [name for name in ("score_threshold", "nms_iou") if name in changes]
    if without_use and getattr(run.config, "multiple", True) is False:
        raise InputError(
            f"{option(without_use[0])} needs --multiple: {options.run} predicts one digit per image"
        )
    return run


def load_published(options: Restored | Export, **changes: Any) -> api.Run | None:
    """Load the published detector that `--weights` and `--model` name; None without them."""
    weights, model = (getattr(options, name, "") for name in ("weights", "model"))
    if not (weights or model):
        return None
    if not model:
        known = ", ".join(registry.names("detector"))
        raise InputError(f"--weights needs --model, one of {known}")
    return api.load_pretrained(model, weights or options.run, **changes)


def report_tiles(run: api.Run, experiment: Experiment, paths: Sequence[Path] = ()) -> None:
    """Print the multiply-adds of a prediction from tiles to stderr, if the run has tiles.

    They are for the largest of the images at `paths` or, without paths, of the experiment's data.
    """
    task: Any = run.experiment.task
    canvas, scale = experiment.metadata["input"][:2], run.experiment.letterbox.scale
    if paths and scale:
        found = [size for size in image_sizes.read(paths) if isinstance(size, tuple)]
        scaled = [images.scaled_size(size, scale) for size in found]
        canvas = task.tiling.covering(*map(max, zip((1, 1), *scaled, strict=True))).canvas
    if line := runs.cost_of_tiles(run.experiment, run.variables, canvas):
        print(f"jaxdet: {line}", file=sys.stderr)


def given_changes(options: Any) -> dict[str, Any]:
    """The options among `CHANGES` that are given, as {name: value}.

    Raises InputError for more devices than there are.
    """
    given = {name: getattr(options, name, None) for name in CHANGES}
    parallel.local_devices(given["devices"] or 0)
    return {name: value for name, value in given.items() if value is not None}


def choose_split(split: str, splits: Sequence[str]) -> str:
    """`runs.choose_split`, with a warning where `val` replaces `test`."""
    return runs.choose_split(split, splits, warn)


def check_picture(path: Path | None, count: int = 1) -> None:
    """Raise InputError if the suffix of a picture file is unknown, or if `count` is below 1."""
    if count < 1:
        raise InputError(f"--count must be at least 1, got {count}")
    if path is None:
        return
    from jaxdet.plots import figures

    if path.suffix not in figures.SUFFIXES:
        raise InputError(
            f"the name of a picture must end in one of {', '.join(figures.SUFFIXES)}, got {path}"
        )


def measure(run: api.Run, evaluator: Evaluator) -> tuple[dict[str, float], dict[str, Any]]:
    """Compute the losses and measurements of a split, with a progress bar on a terminal."""
    return evaluator.measure_counted(run.variables, run.epoch, counting)


@contextmanager
def counting(total: int, name: str | None = None) -> Iterator[Callable[[int], Any]]:
    """A context with a progress bar of `total` images; it gives a function that advances the bar.

    The bar is shown on stderr, but only if that is a terminal and tqdm is installed.  It disappears
    at the end; `write_line` prints above it.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda images: None
        return
    with tqdm(
        desc=name, total=total, unit=" images", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        yield bar.update


def write_line(text: str) -> None:
    """Print a line to stdout, above the bar of `counting` if there is one."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stdout)
    else:
        print(text)


def warn(line: str) -> None:
    """Print a warning to stderr."""
    print(f"jaxdet: warning: {printable(line)}", file=sys.stderr)


def draw(pictures: Sequence[Array], path: Path, *, quiet: bool = False, **shown: Any) -> None:
    """Draw pictures [H, W, C] as one figure, and print its path unless `quiet`.

    `shown` is passed on to `plots.detection.gallery`.
    """
    # Imported here because importing matplotlib takes half a second.
    from jaxdet.plots import detection as detection_plots

    detection_plots.gallery(pictures, path, **shown)
    if not quiet:
        print(f"wrote {path}")


def large_cells(pictures: Sequence[Array]) -> dict[str, Any]:
    """Options of `draw` for pictures [H, W, C] with many boxes: few columns, large cells."""
    height, width = np.mean([picture.shape[:2] for picture in pictures], 0)
    cell = (CELL_HEIGHT * width / height, CELL_HEIGHT + TITLE_HEIGHT)
    return {"columns": COLUMNS, "cell": cell}
