"""`jaxdet data preview SYSTEM`: training inputs with their true boxes."""

from jaxdet import configs, evaluate
from jaxdet.commands import common


def run(name, options, config):
    """Draw `options.count` inputs of the first epoch."""
    common.check_picture(options.out, options.count)
    system = configs.build(name, config)
    shown = evaluate.samples(system, "train", options.count, train=True, seed=config.seed)
    if system.many:
        true = [boxes[on] for boxes, on in zip(shown["boxes"], shown["valid"], strict=True)]
        titles = [f"{len(boxes)} boxes" for boxes in true]
    else:
        true = shown["boxes"][:, 0]
        titles = [f"true {system.about['classes'][label]}" for label in shown["label"]]
    common.draw(shown["image"], options.out, titles=titles, true=true)
    return 0
