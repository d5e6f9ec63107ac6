"""What several commands share: a run restored, places made absolute, pictures."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

from jaxdet import configs, tables
from jaxdet.config import from_json
from jaxdet.data import sources
from jaxdet.errors import InputError
from jaxdet.training import checkpoint, run_dir
from jaxdet.training import state as training

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PLACES = ("root", "split_files", "weights")  # fields that name a file or folder


def absolute(config):
    """A configuration that means the same data from any working directory."""
    named = {name: getattr(config, name, "") for name in PLACES}
    places = {name: str(Path(place).absolute()) for name, place in named.items() if _is_path(place)}
    return replace(config, **places)


def _is_path(place):
    return place and ":" not in place


def kept_config(folder, name=None):
    """The configuration that a run was made with, of system `name` if that is given."""
    system, kept = run_dir.read_config(folder)
    if system not in configs.SYSTEMS or (name and system != name):
        raise InputError(f"{folder} is a run of {system!r}, wanted: {name or configs.SYSTEMS}")
    try:
        return from_json(configs.config(system), kept)
    except ValueError as error:
        raise InputError(
            f"{folder}/config.json: {error}; it was written by another version of jaxdet: "
            f"install that one, or train again"
        ) from None


def restored(options, also=(), *, data=True, **changes):
    """(configuration, system, step, state) of a run; `changes` replace fields of the former.

    `also` are words besides the names of splits that `--split` may be.  Without `data` the system
    is that of `without_data`, and no split is looked for.
    """
    name, _ = run_dir.read_config(options.run)
    config = kept_config(options.run)
    kept = options.run / "splits"
    if options.root:
        place = Path(options.root).absolute() if _is_path(options.root) else options.root
        changes |= {"root": str(place)}
    elif kept.is_dir():
        changes |= {"split_files": str(kept.absolute())}
    strange = [field for field in changes if not hasattr(config, field)]
    if strange:
        raise InputError(f"--{strange[0].replace('_', '-')}: {name} has no such option")
    config = replace(config, **changes)
    system = configs.build(name, config) if data else without_data(options.run, name, config)
    _same_classes(options.run, system)
    known = (*system.splits, *also)
    if data and options.split not in known:
        raise InputError(f"--split {options.split}: {name} has {', '.join(known)}")
    like = jax.eval_shape(training.init_fn(system, config))
    step, state = checkpoint.restore(options.run, like, options.checkpoint, warn)
    return config, system, step, state


def without_data(folder, name, config):
    """The system of a run with a blank record in place of its data.

    Runs of earlier versions do not say what a record is like: theirs is read with the data.
    """
    about = run_dir.read_metadata(folder)
    if "record" not in about:
        return configs.build(name, config)
    return configs.without_data(name, config, about)


def answered(answer, read, batch, paths):
    """Answers [N, ...] to image files, a batch after the other, the last one padded.

    answer: of images [B, H, W, C], an array [B, ...].  read: path -> (image, size).
    """
    made, size = [], min(batch, len(paths))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), size):
            images = [image for image, _ in pool.map(read, paths[start : start + size])]
            padding = [np.zeros_like(images[0])] * (size - len(images))
            made.append(answer(np.stack(images + padding)))
    return np.concatenate(jax.device_get(made))[: len(paths)]


def judged(options):
    """What of the judgement of boxes is to be another than the run's, by the names of fields."""
    named = {name: getattr(options, name) for name in ("score", "nms", "nms_kind", "tta")}
    return {name: value for name, value in named.items() if value is not None}


def _same_classes(folder, system):
    """Refuse data of other classes than those that the run has learnt."""
    kept, found = run_dir.read_metadata(folder)["classes"], system.about["classes"]
    if list(kept) != list(found):
        raise InputError(f"the data have {_listed(found)}, {folder} has learnt {_listed(kept)}")


def _listed(classes, most=5):
    """How many classes there are, and the first of them."""
    more = ", ..." if len(classes) > most else ""
    return f"{len(classes)} classes ({', '.join(classes[:most])}{more})"


def warn(line):
    """Print a line that is no answer."""
    print(f"jaxdet: warning: {line}", file=sys.stderr)


def check_picture(path, count=1):
    """Refuse, before anything is computed, a picture that could not be drawn."""
    from jaxdet.plots import figures

    if count < 1:
        raise InputError(f"--count {count}: a number of at least 1 is wanted")
    if path is not None and path.suffix not in figures.SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(figures.SUFFIXES)}")


def draw(pictures, path, *, quiet=False, **told):
    """One figure of pictures [H, W, C], true boxes green, predicted ones red: `plots.gallery`."""
    from jaxdet.plots import detection as detection_plots

    detection_plots.gallery(pictures, path, **told)
    if not quiet:
        print(f"wrote {path}")


COLUMNS, HIGH = 4, 4.0  # of a figure of photos with many boxes; inches that one is high


def sheet(pictures):
    """Options of `draw` for photos [H, W, C] with many boxes: as large as these want to be seen."""
    height, width = np.mean([picture.shape[:2] for picture in pictures], 0)
    return {"columns": COLUMNS, "cell": (HIGH * width / height, HIGH + 0.3)}  # and a title


def by_label(scores):
    """Markdown: a row a label with its scores, and with what its images were taken for."""
    rows = [{"label": name, **of_label} for name, of_label in scores["labels"].items()]
    known = dict.fromkeys(name for row in rows for name in row)
    for row, counts in zip(rows, scores["confusion"], strict=True):
        row |= {f"as {name}": count for name, count in zip(scores["labels"], counts, strict=True)}
    names = [name for name in {**known, **rows[0]} if name not in ("count", "correct")]
    return tables.to_markdown(rows, names)


def begin(folder, name, config, system):
    """An empty run folder with what `eval` and `predict` need later."""
    run_dir.create(folder)
    for path, text in system.files:
        run_dir.write_file(folder, path, text)
    record = sources.record_spec(system.splits["train"])
    run_dir.write_config(folder, name, asdict(config), system.about | {"record": record})


def tell_skipped(notes, line, most=5):
    """What of the data is left out, and why: the first few in full."""
    if notes:
        line(f"{len(notes)} photos or rows cannot be used and are left out:")
    for note in notes[:most]:
        line(f"  {note}")


def tell_uneven(system, config, line):
    """One line where a batch does not divide its images, as seed 003 wants: see `data.batches`."""
    if not config.LIMITS:
        return
    of = {"train": ("--batch", config.batch), "test": ("--eval-batch", config.eval_batch)}
    told = [
        f"{option} {batch} does not divide the {len(system.splits[part])} images of {part}"
        for part, (option, batch) in of.items()
        if len(system.splits[part]) % batch
    ]
    if told:
        fill = "the last batch of an epoch takes its first images again, that of a test is padded"
        line(f"warning: {', '.join(told)}: {fill}")


@contextmanager
def caught_signals():
    """A list that collects the signals that ask for an end; a second SIGINT ends at once."""
    caught = []

    def note(number, frame):
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
