"""`jaxdet data preview SYSTEM`: training inputs with their true boxes."""

from itertools import chain

import numpy as np

from jaxdet import configs, evaluate
from jaxdet.commands import common


def run(name, options, config):
    """Draw `options.count` inputs of the first epoch, each beside what it was where asked for."""
    common.check_picture(options.out, options.count)
    system = configs.build(name, config)
    after = _drawn(system, options.count, train=True, seed=config.seed)
    if options.before:
        before = _drawn(system, options.count, train=False)
        after = [list(chain(*zip(*pair, strict=True))) for pair in zip(before, after, strict=True)]
    pictures, titles, true = after
    common.draw(pictures, options.out, titles=titles, true=true)
    return 0


def _drawn(system, count, **how):
    """Pictures, titles and true boxes of the first inputs."""
    shown, classes = evaluate.samples(system, "train", count, **how), system.about["classes"]
    if system.many:
        true = [boxes[on] for boxes, on in zip(shown["boxes"], shown["valid"], strict=True)]
        titles = [f"{len(boxes)} boxes" for boxes in true]
    else:
        true = shown["boxes"][:, 0] if "boxes" in shown else [None] * len(shown["label"])
        wanted = shown.get("wanted", np.eye(len(classes))[shown["label"]])
        titles = [f"true {_shares(classes, shares)}" for shares in wanted]
    return shown["image"], titles, true


def _shares(classes, shares, least=0.1):
    """The classes that an image is to be taken for, each with its share, or one alone."""
    most = [i for i in np.argsort(-shares) if shares[i] >= least] or [shares.argmax()]
    if len(most) == 1:
        return classes[most[0]]
    return ", ".join(f"{classes[i]} {shares[i]:.2f}" for i in most)
