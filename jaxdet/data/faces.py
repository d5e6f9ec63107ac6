"""Data sets of faces: which identities to train on, and how their images are split."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdet.config import cached_reader
from jaxdet.data import image_folder, sources
from jaxdet.data.image_folder import LabeledImage
from jaxdet.errors import InputError

Splits = dict[str, list[LabeledImage]]


class FaceDataset(NamedTuple):
    """The identities to train on, and the sources of all splits."""

    classes: tuple[str, ...]
    splits: dict[str, sources.Source]  # train, val and test; `others` has identities not trained on
    notes: tuple[str, ...]  # one line for each file that cannot be used


@cached_reader(
    *("root", "size", "identities", "val_fraction", "test_fraction", "train_fraction"),
    *("split_seed", "stream", "on_invalid", "image_cache"),
)
def read_dataset(config: Any) -> FaceDataset:
    """Read the data set of a configuration of `faces`.

    The network is trained on the first `config.identities` identities in alphabetical order (all
    of them if it is 0); the images of the remaining identities form the split `others`.  Raises
    InputError if an identity to train on has no usable training image.
    """
    _check_root(config.root)
    dataset = image_folder.read(config.root)
    if config.identities > len(dataset.classes):
        raise InputError(
            f"--identities must be at most {len(dataset.classes)} for {config.root}, got "
            f"{config.identities}"
        )
    count = config.identities or len(dataset.classes)
    classes, others = dataset.classes[:count], dataset.classes[count:]
    samples = {
        name: [sample for sample in own if sample.label in classes]
        for name, own in _split(config, dataset.splits).items()
    }
    if others:
        every = (sample for own in dataset.splits.values() for sample in own)
        samples["others"] = [sample for sample in every if sample.label in others]
    load = image_folder.load
    if config.stream:
        options = {"on_invalid": config.on_invalid, "cache": config.image_cache}
        load = partial(image_folder.stream, **options)
    splits, notes, first = {}, list(dataset.notes), 0
    for name, own in samples.items():
        names = dataset.classes if name == "others" else classes
        splits[name], faults = load(own, names, config.size, first_id=first)
        first += len(own)
        notes += faults
    _check_trained(config.root, classes, splits["train"].labels)
    return FaceDataset(classes, splits, tuple(notes))


def summarize(root: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (one table row per identity, notes), see `image_folder.summarize`."""
    _check_root(root)
    return image_folder.summarize(image_folder.read(root))


def _split(config: Any, splits: Splits) -> Splits:
    """Take or draw the splits; an empty `val` is replaced by `train`, an empty `test` by `val`."""
    given = {"train", "val"} <= {*splits}
    made = {"test": [], **splits} if given else _random_split(config, splits)
    made["train"] = _training_fraction(config, made["train"])
    val = made["val"] or made["train"]
    return made | {"val": val, "test": made["test"] or val}


def _random_split(config: Any, splits: Splits) -> Splits:
    """Draw the splits from each identity's images; keep `val` or `test` if the data have it."""
    whole = [sample for name in ("all", "train") for sample in splits.get(name, [])]
    given = {name: splits[name] for name in ("val", "test") if name in splits}
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    made = {"train": [], "val": [], "test": []}
    random = np.random.default_rng(config.split_seed)
    for own in _by_identity(whole):
        order, start = random.permutation(len(own)), 0
        for name, fraction in fractions.items():
            count = 0 if name in given else round(fraction * len(own))
            made[name] += [own[i] for i in order[start : start + count]]
            start += count
        made["train"] += [own[i] for i in order[start:]]
    return made | given


def _training_fraction(config: Any, samples: list[LabeledImage]) -> list[LabeledImage]:
    """Draw images of each identity; the images of a smaller fraction are also in a larger one."""
    if config.train_fraction == 1:
        return samples
    random, kept = np.random.default_rng(config.split_seed), []
    for own in _by_identity(samples):
        count = max(round(config.train_fraction * len(own)), 1)
        kept += [own[i] for i in sorted(random.permutation(len(own))[:count])]
    return kept


def _by_identity(samples: Sequence[LabeledImage]) -> list[list[LabeledImage]]:
    found = {}
    for sample in samples:
        found.setdefault(sample.label, []).append(sample)
    return list(found.values())


def _check_trained(root: str, classes: Sequence[str], labels: np.ndarray) -> None:
    """Raise InputError for an identity without a usable training image."""
    seen = {*labels.tolist()}
    unseen = [name for number, name in enumerate(classes) if number not in seen]
    if unseen:
        more = f" ({len(unseen)} such identities)" if unseen[1:] else ""
        raise InputError(
            f"{root}: no training image of {unseen[0]} can be used{more}; add one, or remove the "
            "folder"
        )


def _check_root(root: str | Path) -> None:
    if not root:
        raise InputError(
            "--root must be a folder or tar file with one folder of images per identity, got none"
        )
