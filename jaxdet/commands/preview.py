"""`jaxdet data preview SYSTEM`: training inputs with their true boxes."""

from itertools import chain

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
    shown = evaluate.samples(system, "train", count, **how)
    if system.many:
        true = [boxes[on] for boxes, on in zip(shown["boxes"], shown["valid"], strict=True)]
        titles = [f"{len(boxes)} boxes" for boxes in true]
    else:
        true = shown["boxes"][:, 0] if "boxes" in shown else [None] * len(shown["label"])
        titles = [f"true {system.about['classes'][label]}" for label in shown["label"]]
    return shown["image"], titles, true
