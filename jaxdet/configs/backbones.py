"""Backbones by name: the modules, their parts that may be frozen, and their trained weights."""

from functools import partial
from typing import Literal, get_args

from jaxdet.errors import InputError

Backbone = Literal[
    *("lite0", "b0", "b1", "b2", "b3", "resnet18", "resnet34", "resnet50"),
    *("mobilenet_v2", "mobilenet_v3", "mobilenet_v3_small"),
]


def features(name, built=0):
    """Makes the feature maps of a backbone, given the fields that all have.

    built: of its parts, from the first on; 0: all.
    """
    whole = _features(name)
    if not built:
        return whole
    rows = "rows" if name.startswith("mobilenet") else "stages"
    return partial(whole, **{rows: getattr(whole(), rows)[: built - 1]})  # but for the stem


def _features(name):
    from jaxdet.models import efficientnet, mobilenet, resnet

    match name:
        case "mobilenet_v2":
            return partial(mobilenet.V2, classes=0)
        case "mobilenet_v3":
            return partial(mobilenet.V3Large, classes=0)
        case "mobilenet_v3_small":
            return partial(mobilenet.V3Small, classes=0)
        case "resnet18":
            return partial(resnet.ResNet18, classes=0)
        case "resnet34":
            return partial(resnet.ResNet34, classes=0)
        case "resnet50":
            return partial(resnet.ResNet50, classes=0)
        case "b0" | "b1" | "b2" | "b3":
            return partial(getattr(efficientnet, name.upper()), classes=0)
    return partial(efficientnet.Lite0, classes=0)


def parts(name):
    """How the names of its layers begin, from the first on: what `frozen` counts."""
    from jaxdet.models import efficientnet, mobilenet, plain, resnet

    match name:
        case "mobilenet_v2" | "mobilenet_v3" | "mobilenet_v3_small":
            return mobilenet.stage_names(features(name)().rows)
        case "simple":
            return plain.stage_names(plain.SIMPLE)
        case "deeper":
            return plain.stage_names(plain.DEEPER)
        case "vgg":
            return plain.stage_names(plain.VGG)
        case "lite0" | "b0" | "b1" | "b2" | "b3":
            return efficientnet.STAGE_NAMES[:-1]  # without the head of the classifier
    return resnet.STAGE_NAMES


def frozen(config):
    """Names of the parts of the features that do not learn, from the first layer on."""
    if config.transfer != "frozen":
        return ()
    names = parts(config.model)
    return names[: len(names) - config.unfreeze_last]


def kept(config):
    """Names of the parts that do not learn of the backbone of a `Trained`."""
    built = getattr(config, "parts", 0) or None  # of those who have that option
    return parts(config.model)[:built][: config.freeze_stages]


def factor(config, path):
    """The factor of the learning rate of a parameter; 0 where it stays."""
    first, *_ = path.split("/")
    if first != "features":
        return 1.0
    return config.backbone_lr if learns(kept(config), path) else 0.0


def factors(config):
    """`factor` of a `Trained`, or None where all learns alike."""
    return partial(factor, config) if config.freeze_stages or config.backbone_lr != 1 else None


def check(config):
    """Refuse options of a `Trained` that do not fit its backbone or each other."""
    count = len(parts(config.model))
    if not abs(config.freeze_stages) <= count:
        raise InputError(
            f"--freeze-stages {config.freeze_stages}: {config.model} has {count} parts"
        )
    if config.freeze_stages and not config.weights:
        raise InputError(
            f"--freeze-stages {config.freeze_stages} wants --weights: random numbers would stay so"
        )


def without(config):
    """Fields that leave batch norm out of a backbone."""
    if not config.norm and config.model == "lite0":
        raise InputError("--no-norm: lite0 has no form without batch norm; choose another --model")
    return {} if config.norm else {"norm": False}


def pretrained(name, file, variables, norm=True, built=0):
    """The variables of a network, those of its `features`, called `name`, from a file of weights.

    file: as `jaxdet.models.pretrained.fetch` takes it.  built: parts that the network has; 0: all.
    """
    from jaxdet import pickles
    from jaxdet.models import efficientnet, pretrained

    if name not in (*get_args(Backbone), "vgg"):
        raise InputError(f"--weights: nobody has trained {name}; choose another --model")
    arrays = pickles.read_arrays(pretrained.fetch(file))
    match name:
        case "lite0" | "b0" | "b1" | "b2" | "b3":
            timm = "conv_stem.weight" in arrays
            named = efficientnet.timm_name if timm else efficientnet.torch_name
            names = partial(named, stages=features(name)().scaled())
        case "vgg":
            names = partial(pretrained.vgg_name, norm=norm)
        case "mobilenet_v2" | "mobilenet_v3" | "mobilenet_v3_small":
            names = partial(pretrained.mobilenet_name, features(name)())
        case _:
            names = pretrained.resnet_name
    last = [f"features.{len(parts(name))}."] if name.startswith("mobilenet") else []
    spare = (*pretrained.HEADS, *efficientnet.HEADS, *last, *_unbuilt(name, names, built))
    return pretrained.assign_arrays(variables, arrays, partial(_of_features, names), spare=spare)


def _unbuilt(name, names, built):
    """Names in a file of weights of what follows the first parts of a backbone."""
    import jax

    if not built:
        return ()
    shapes = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    whole = jax.eval_shape(features(name)().init, jax.random.key(0), shapes)
    paths = [
        jax.tree_util.keystr(where, simple=True, separator="/")
        for where, _ in jax.tree.leaves_with_path(whole)
    ]
    left = parts(name)[built:]
    return tuple(names(path) for path in paths if _within(left, path.split("/")[1]))


def _of_features(names, path):
    """A name map of a backbone as that of the network that has it for `features`."""
    collection, first, *rest = path.split("/")
    return names("/".join([collection, *rest])) if first == "features" else None


def learns(stay, path):
    """Whether a parameter is outside of the parts that stay."""
    first, layer, *_ = path.split("/")
    return first != "features" or not _within(stay, layer)


def _within(names, layer):
    """Whether a layer belongs to one of the parts with these names."""
    return any(layer == part or layer.startswith(f"{part}_") for part in names)
