"""Photos of a folder with a table a label, cut into training, validation and test: of `objects`.

Functions take the configuration of the system, or the options of `jaxdet data split`.
"""

from collections import Counter
from pathlib import Path

from jaxdet.configs import base
from jaxdet.errors import InputError


def inspect(root):
    """({column: value} a label, what is wrong with rows) of the folder `root`."""
    from jaxdet.data import localization

    _check_root(root)
    return localization.survey(root)


def cut(config):
    """({column: value} a part, its files, what is wrong with rows) of the cuts of `config`."""
    parts, bad = rows(config)
    labels = sorted({row.label for of_part in parts.values() for row in of_part})
    counts = []
    for part, of_part in parts.items():
        found = Counter(row.label for row in of_part)
        counts.append({"part": part, "photos": len(of_part), **{k: found[k] for k in labels}})
    return counts, tables(parts), bad


def rows(config):
    """Rows of each part, and what is wrong with others."""
    from jaxdet.data import localization

    _check_root(config.root)
    if getattr(config, "split_files", ""):
        return localization.read_split(config.split_files, config.root)
    every, bad = localization.read(config.root)
    shares = {name: getattr(config, name) for name in ("cut_val", "cut_test", "train_frac")}
    return localization.split(every, **shares, seed=config.split_seed), bad


@base.reads("root", "split_files", "cut_val", "cut_test", "train_frac", "split_seed", "size")
def read(config):
    """({part: rows}, classes, {part: source} of those that can be used, what is wrong)."""
    from jaxdet.data import localization

    parts, bad = rows(config)
    classes = tuple(sorted({row.label for of_part in parts.values() for row in of_part}))
    splits, notes, first = {}, [*bad], 0
    for part, of_part in parts.items():
        splits[part], bad = localization.load(
            of_part, config.root, config.size, classes, first_id=first
        )
        first += len(of_part)
        notes += bad
    return parts, classes, splits, tuple(notes)


def tables(parts):
    """Files that keep the split with the run."""
    from jaxdet.data import localization

    return tuple(
        (f"splits/{localization.PARTS[part]}", localization.table(of_part))
        for part, of_part in parts.items()
    )


def table(config, classes, path):
    """What a table says of photos: (path, index of the label, box in the photo's pixels)."""
    from jaxdet.data import localization

    _check_root(config.root)
    found, bad = localization.read_table(path, config.root)
    unknown = [row.where for row in found if row.label not in classes]
    if bad or unknown:
        raise InputError(f"{bad[0] if bad else unknown[0] + ': a label that the run has not'}")
    folder = Path(config.root) / "images"
    return [(folder / row.label / row.file, classes.index(row.label), row.box) for row in found]


def _check_root(root):
    """Refuse a folder that is not there."""
    if not root:
        raise InputError("--root: the folder with images/ and annotations/ is wanted")
    if not Path(root).is_dir():
        raise InputError(f"--root {root}: no such folder")
