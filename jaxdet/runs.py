"""Functions that create and reopen run folders, used by the API and by sweeps."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet import configs, files, flops
from jaxdet.config import MAX_INT, RUN, TrainConfig, from_json, option
from jaxdet.config import check_to_train as check_options
from jaxdet.data import detection, sources
from jaxdet.errors import InputError
from jaxdet.models import pretrained
from jaxdet.training import run_dir, weight_file
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment
from jaxdet.types import Tree

MAX_NOTES = 5  # notes on unusable data that are printed in full


def system_of(config: TrainConfig) -> str:
    """The name of the system of a configuration; InputError for any other object."""
    for name in configs.SYSTEMS:
        if isinstance(config, configs.config(name)):
            return name
    raise InputError(
        f"{type(config).__name__} is not a configuration of {', '.join(configs.SYSTEMS)}; give an "
        f"Experiment to train a task of your own"
    )


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """Make the paths in a configuration absolute, so that they hold in any working directory.

    Weights in a file that `jaxdet export` has written become `run:FILE`.
    """
    named = {name: absolute(getattr(config, name, "")) for name in run_dir.PATHS}
    weights = named["weights"]
    if is_path(weights) and files.has_metadata(weights, weight_file.KEY):
        named["weights"] = f"{RUN}{weights}"
    return replace(config, **{name: path for name, path in named.items() if path})


def absolute(path: str | Path) -> str:
    """Make a path, or the path in `run:DIR`, absolute; `tfds:NAME` and the like are unchanged."""
    text = str(path)
    if text.startswith(RUN):
        return f"{RUN}{Path(text.removeprefix(RUN)).absolute()}"
    return str(Path(text).absolute()) if is_path(text) else text


def is_path(text: str) -> bool:
    """Whether a value is a path: not empty, and without a colon as in `tfds:NAME`."""
    return bool(text) and ":" not in text


def read_config(folder: str | Path, system: str = "") -> TrainConfig:
    """Read the configuration of a run.

    Raises InputError if it is damaged, or if `system` is given and the run is of another system.
    """
    kept = run_dir.read_config(folder)
    if kept.system not in configs.SYSTEMS or (system and kept.system != system):
        expected = system or f"one of {', '.join(configs.SYSTEMS)}"
        raise InputError(f"{folder} must be a run of {expected}, got a run of {kept.system!r}")
    missing = [name for name in ("classes", "input") if name not in kept.metadata]
    if missing:
        raise InputError(
            f"{folder}/config.json is damaged (its metadata must have {missing[0]!r}); restore it, "
            f"or train again"
        )
    try:
        return from_json(configs.config(kept.system), kept.config)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{folder}/config.json: {error}; it is damaged, or another version of jaxdet wrote it: "
            f"restore it, install that version, or train again"
        ) from None


def check_same(folder: str | Path, kept: TrainConfig, config: TrainConfig) -> None:
    """Raise InputError if options differ from `kept`, the options of the run to resume in `folder`.

    The options of `changeable` may differ and, with a time budget, the number of epochs.
    """
    config = replace(config, **changeable(kept))
    if kept.time_budget:
        config = replace(config, epochs=kept.epochs)
    for field in fields(kept):
        before, now = getattr(kept, field.name), getattr(config, field.name)
        if before != now:
            raise InputError(
                f"{option(field.name)} must be {before} to resume {folder}, got {now}; leave it "
                f"out, or start anew with another --out"
            )


def changeable(config: TrainConfig) -> dict[str, Any]:
    """The options that may change when a run is resumed, as {name: value}."""
    streamed = ("on_invalid", "image_cache") if getattr(config, "stream", False) else ()
    names = ("steps_per_call", *streamed)
    return {name: getattr(config, name) for name in names}


def check_config(system: str, config: TrainConfig) -> None:
    """Raise InputError for invalid options and missing weights, before any data are read."""
    configs.checked_module(system, config)
    weights = getattr(config, "weights", "")
    if weights.startswith(RUN):
        source = weights.removeprefix(RUN)
        weight_file.read(source) if Path(source).is_file() else run_dir.read_config(source)
    elif weights and not pretrained.fetch(weights).is_file():
        raise InputError(f"--weights must be an existing file, got {weights}")


def create(folder: str | Path, experiment: Experiment, *, overwrite: bool = False) -> run_dir.Lock:
    """Create a run folder with all that resuming and evaluation need later; return its lock."""
    record = sources.record_spec(experiment.splits["train"])
    streams = _streams(experiment)
    listed = ((run_dir.STREAMS, json.dumps(streams)),) if streams else ()
    return run_dir.create(
        folder,
        experiment.name,
        asdict(experiment.config),
        experiment.metadata | {"record": record},
        (*experiment.files, *listed),
        overwrite=overwrite,
    )


def with_kept_streams(folder: str | Path, experiment: Experiment) -> Experiment:
    """The experiment of a run to resume, streaming the images that the run began with.

    An image that cannot be read any more keeps its place in the order of an epoch.  Raises
    InputError if images were added to the data, removed from a folder without annotations, or
    are now in another order.
    """
    kept, splits = run_dir.read_streams(folder), dict(experiment.splits)
    for split, source in experiment.splits.items():
        if isinstance(source, sources.StreamSource) and split in kept:
            before, now = kept[split]["names"], source.every_name
            if before != now:
                raise InputError(
                    f"images of {split} have changed since the run in {folder} began: "
                    f"{_describe_change(before or (), now or ())}; restore them, or train a new "
                    f"run with another --out"
                )
            splits[split] = source.leaving_out(kept[split]["left_out"])
    return replace(experiment, splits=splits)


def _describe_change(before: Sequence[str], now: Sequence[str]) -> str:
    """The difference of two lists of image names in words: an example and counts, or the order."""
    missing, new = sorted({*before} - {*now}), sorted({*now} - {*before})
    if not missing and not new:
        return "their order differs"
    example = f"{missing[0]} is missing" if missing else f"{new[0]} is new"
    return f"{example} ({len(missing)} missing, {len(new)} new)"


def _streams(experiment: Experiment) -> dict[str, run_dir.StreamedImages]:
    """The images of the streams of an experiment, by split."""
    return {
        split: {"names": source.every_name, "left_out": [*map(int, source.left_out)]}
        for split, source in experiment.splits.items()
        if isinstance(source, sources.StreamSource)
    }


def report_notes(notes: Sequence[str], line: Callable[[str], None]) -> None:
    """Report notes on the data, line by line: their number, and the first `MAX_NOTES` notes.

    There are three groups: data that cannot be used, data that are evaluated but left out of
    training, and remarks.
    """
    faults = detection.faults(notes)
    groups = {
        "images or rows cannot be used and are left out": [],
        "images or boxes are evaluated, but at least partly left out of training": [],
        "remarks on the data": [note for note in notes if isinstance(note, detection.Remark)],
    }
    unusable, untrained, _ = groups.values()
    for note in faults:
        (untrained if detection.TRAINED_ON in note else unusable).append(note)
    for text, own in groups.items():
        if own:
            line(f"{len(own)} {text}:")
        for note in own[:MAX_NOTES]:
            line(f"  {note}")


def cost_of_tiles(
    experiment: Experiment, variables: Tree = None, canvas: Sequence[int] = ()
) -> str:
    """A line with the multiply-adds of a prediction from tiles, and of one without; "" if untiled.

    variables: of the network, or their shapes; None: the shapes of the experiment's network.
    canvas: height and width of the grid of tiles; (): for the largest image of the data.
    """
    task: Any = experiment.task
    config: Any = experiment.config
    if getattr(task, "tiling", None) is None:
        return ""
    variables = training_state.variable_shapes(experiment) if variables is None else variables
    height, width = canvas or experiment.metadata["input"][:2]
    tiling = task.tiling.covering(height, width)

    def multiply_adds(task: Any, *sides: int) -> int:
        image = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
        return flops.count(task.predict, variables, image).sum().multiply_adds

    tiled = multiply_adds(task, height, width)
    ratio = tiled / multiply_adds(replace(task, tiling=None), tiling.height, tiling.width)
    most = "up to " * (not task.tiling.rows)
    return (
        f"--tiles {config.tiles}: images of {most}{height} x {width} pixels "
        f"in {tiling.rows} x {tiling.columns} tiles of {tiling.height} x {tiling.width}, "
        f"{most}{tiled / 1e9:.3g} G multiply-adds per image, {ratio:.3g} times as many as without "
        f"tiles"
    )


def check_to_train(experiment: Experiment, line: Callable[[str], None]) -> None:
    """Raise InputError for invalid options and combinations; warn of options without effect.

    `line` is called with each warning.
    """
    config, steps = experiment.config, experiment.plan.steps
    ineffective = check_options(config)
    _check_scored(experiment)
    if steps > MAX_INT:
        raise InputError(
            f"--epochs must give at most {MAX_INT} steps, got {steps} with --epochs {config.epochs}"
        )
    if not config.time_budget and config.accumulate > steps:
        raise InputError(
            f"--accumulate must be at most {steps}, the number of steps of the run, got "
            f"{config.accumulate}"
        )
    updates = -(-steps // config.accumulate)
    if not config.time_budget and config.warmup >= updates:
        ineffective.append(
            f"--warmup {config.warmup} does not end: the run has only {updates} parameter updates"
        )
    for text in ineffective:
        line(f"warning: {text}")


def _check_scored(experiment: Experiment) -> None:
    """Raise InputError if --monitor names a missing split, or an option needs validation images."""
    config, scored = experiment.config, experiment.scored_splits
    if config.monitor not in scored:
        known = ", ".join(split for split in ("val", "test") if split in experiment.splits)
        raise InputError(
            f"--monitor {config.monitor} needs a split {config.monitor}, but the data have "
            f"{known or 'neither val nor test'}; change --monitor, or split off images for "
            f"{config.monitor}"
        )
    needed = {
        f"--patience {config.patience}": config.patience,
        "--schedule plateau": config.schedule == "plateau",
    }
    for given, needs_val in needed.items():
        if needs_val and "val" not in scored:
            raise InputError(f"{given} needs validation images: give a --val-fraction above 0")


def report_uneven_batches(experiment: Experiment, line: Callable[[str], None]) -> None:
    """For a system with `LIMITS`, warn of splits whose size is not a multiple of the batch size."""
    config = experiment.config
    if not config.LIMITS:
        return
    batches = {"train": ("--batch", config.batch), "test": ("--eval-batch", config.eval_batch)}
    uneven = [
        f"{name} {batch} does not divide the {len(experiment.splits[split])} images of {split}"
        for split, (name, batch) in batches.items()
        if len(experiment.splits[split]) % batch
    ]
    if uneven:
        line(
            f"warning: {', '.join(uneven)}: the last training batch of an epoch is filled up with "
            f"the first images of the epoch, and the last evaluation batch is padded"
        )


def without_data(folder: str | Path, config: TrainConfig) -> Experiment:
    """Build the experiment of a run, with a blank record in place of its data.

    Runs of early versions, whose metadata do not describe a record, need their data.
    """
    kept = run_dir.read_config(folder)
    if "record" not in kept.metadata:
        return configs.build(kept.system, config)
    return configs.without_data(kept.system, config, kept.metadata)


def choose_split(split: str, splits: Sequence[str], warn: Callable[[str], None]) -> str:
    """Return `split`, or `val` in place of a missing `test`; InputError for an unknown split."""
    if split == "test" and split not in splits and "val" in splits:
        warn("the data have no test split; val is used")
        return "val"
    if split not in splits:
        raise InputError(f"--split must be one of {', '.join(splits)}, got {split}")
    return split


def unique_names(folders: Iterable[Path]) -> dict[str, Path]:
    """Name each folder by the last part of its path or, if this is not unique, by the whole path.

    Returns {name: folder}.
    """
    own = {folder: folder.resolve().name for folder in folders}
    count = Counter(own.values())
    return {name if count[name] == 1 else str(folder): folder for folder, name in own.items()}


def check_bootstrap(resamples: int) -> None:
    """Raise InputError for a negative number of resamples."""
    if resamples < 0:
        raise InputError(f"--bootstrap must be at least 0, got {resamples}")


def check_classes(folder: str | Path, kept: list[str], experiment: Experiment) -> None:
    """Raise InputError if the classes of the data are not `kept`, the classes of a run."""
    found: list[Any] = list(experiment.metadata["classes"])
    if kept != found:
        raise InputError(
            f"the data must have the classes of {folder}, {_list_classes(kept)}, got "
            f"{_list_classes(found)}"
        )


def _list_classes(classes: Sequence[str], most: int = 5) -> str:
    more = ", ..." if len(classes) > most else ""
    return f"{len(classes)} classes ({', '.join(classes[:most])}{more})"
