"""`jaxdet data preview SYSTEM`: training inputs with their true boxes."""

from itertools import chain

import numpy as np

from jaxdet import configs
from jaxdet.cli import common
from jaxdet.training import evaluator


def run(name, options, config):
    """Draw `options.count` inputs of the first epoch, each beside what it was where asked for."""
    common.check_picture(options.out, options.count)
    system = configs.build(name, config)
    after = _drawn(system, options.count, train=True, seed=config.seed)
    if options.before:
        before = _drawn(system, options.count, train=False)
        for shown, word in ((before, "before"), (after, "after")) if system.many else ():
            shown["titles"] = [f"{word}: {title}" for title in shown["titles"]]
        after = {key: _in_turn(before[key], after[key]) for key in after}
    pictures = after.pop("pictures")
    sheet = common.sheet(pictures) if system.many else {}
    common.draw(pictures, options.out, **after, **sheet)
    return 0


def _in_turn(*columns):
    """The first of all columns, then the second ones, and so on."""
    return list(chain(*zip(*columns, strict=True)))


def _drawn(system, count, **how):
    """Pictures of the first inputs, and what `common.draw` takes of each."""
    shown, classes = evaluator.samples(system, "train", count, **how), system.about["classes"]
    if system.many:
        return {"pictures": shown["image"], **_many(shown, classes)}
    true = shown["boxes"][:, 0] if "boxes" in shown else [None] * len(shown["label"])
    wanted = shown.get("wanted", np.eye(len(classes))[shown["label"]])
    titles = [f"true {_shares(classes, shares)}" for shares in wanted]
    return {"pictures": shown["image"], "titles": titles, "true": true}


def _many(shown, classes):
    """Titles, true boxes and their classes of photos with many boxes."""
    pairs = zip(shown["boxes"], shown["labels"], shown["valid"], strict=True)
    true, kinds = zip(*((boxes[on], labels[on]) for boxes, labels, on in pairs), strict=True)
    return {
        "titles": [f"{len(boxes)} boxes" for boxes in true],
        "true": true,
        "texts": [[classes[i] for i in of_photo] for of_photo in kinds],
        "labels": kinds,
    }


def _shares(classes, shares, least=0.1):
    """The classes that an image is to be taken for, each with its share, or one alone."""
    most = [i for i in np.argsort(-shares) if shares[i] >= least] or [shares.argmax()]
    if len(most) == 1:
        return classes[most[0]]
    return ", ".join(f"{classes[i]} {shares[i]:.2f}" for i in most)
