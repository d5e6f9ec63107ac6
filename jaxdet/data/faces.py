"""The people of `faces`: whom it learns, and which of their images are for what."""

from jaxdet.config import cached_reader
from jaxdet.errors import InputError


def summarize(root):
    """({column: value} a person, what is wrong with files and folders) of the data at `root`."""
    from jaxdet.data import image_folder

    _check_root(root)
    return image_folder.summarize(image_folder.read(root))


@cached_reader(
    *(
        "root",
        "size",
        "identities",
        "val_fraction",
        "test_fraction",
        "train_fraction",
        "split_seed",
        "stream",
    )
)
def read_splits(config):
    """(people that are learnt, {split: source}, what is wrong with files).

    InputError for one of these people without an image for training that can be used.
    """
    from jaxdet.data import image_folder

    _check_root(config.root)
    found = image_folder.read(config.root)
    classes, others = _people(config, found.classes)
    parts = _parts(config, found.parts)
    chosen = {part: [row for row in rows if row.label in classes] for part, rows in parts.items()}
    if others:
        every = (row for rows in found.parts.values() for row in rows)
        chosen["others"] = [row for row in every if row.label in others]
    splits, notes, first = {}, list(found.notes), 0
    for part, rows in chosen.items():
        names = (*classes, *others) if part == "others" else classes
        load = image_folder.stream if config.stream else image_folder.load
        splits[part], bad = load(rows, names, config.size, first_id=first)
        first += len(rows)
        notes += bad
    _check_learnt(config.root, classes, labels(splits["train"]))
    return classes, splits, tuple(notes)


def labels(source):
    """The label [N] of each image of a source, held or streamed."""
    return source.arrays["label"] if source.arrays else source.labels


def _people(config, names):
    """(people to learn, the others) of all names."""
    if config.identities > len(names):
        raise InputError(f"--identities {config.identities}: {config.root} has {len(names)}")
    count = config.identities or len(names)
    return names[:count], names[count:]


def _parts(config, found):
    """{split: rows}: the parts of the data, or cuts of the images of every person.

    Without images for them validation has those of the training, the test those of validation.
    """
    whole = {"train", "val"} <= {*found}
    made = {"test": [], **found} if whole else _cut(config, found)
    made["train"] = _used(config, made["train"])
    val = made["val"] or made["train"]
    return made | {"val": val, "test": made["test"] or val}


def _cut(config, found):
    """{split: rows}: cuts of the images of every person, beside the parts that the data have."""
    import numpy as np

    whole = [row for part in ("all", "train") for row in found.get(part, [])]
    held = {part: found[part] for part in ("val", "test") if part in found}
    shares = {"test": config.test_fraction, "val": config.val_fraction}
    made = {"train": [], "val": [], "test": []}
    random = np.random.default_rng(config.split_seed)
    for own in _by_person(whole):
        order, start = random.permutation(len(own)), 0
        for part, share in shares.items():
            count = 0 if part in held else round(share * len(own))
            made[part] += [own[i] for i in order[start : start + count]]
            start += count
        made["train"] += [own[i] for i in order[start:]]
    return made | held


def _used(config, rows):
    """The share of the rows of each person for training that is used; less is a part of more."""
    if config.train_fraction == 1:
        return rows
    import numpy as np

    random, used = np.random.default_rng(config.split_seed), []
    for own in _by_person(rows):
        count = max(round(config.train_fraction * len(own)), 1)
        used += [own[i] for i in sorted(random.permutation(len(own))[:count])]
    return used


def _by_person(rows):
    """The rows of each person, in the order in which people first come."""
    found = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return found.values()


def _check_learnt(root, classes, learnt):
    """Refuse people whom no image for training shows."""
    seen = {*learnt.tolist()}
    unseen = [name for number, name in enumerate(classes) if number not in seen]
    if unseen:
        more = f" ({len(unseen)} such people)" if unseen[1:] else ""
        raise InputError(
            f"{root}: no image for training of {unseen[0]} can be used{more}; add one, or take "
            "the folder away"
        )


def _check_root(root):
    if not root:
        raise InputError("--root: the folder with a folder of images a person is wanted")
