"""CIFAR-10: small images of ten classes, within limits of parameters and training time.

    jaxdet train cifar10 --root DIR                                  # PyTorch's tutorial, 2 epochs
    jaxdet eval runs/cifar10 --tta true                              # mirror images as well
    jaxdet describe runs/cifar10                                     # every layer, every operation
    jaxdet train cifar10 --root DIR --model tiny --time-budget 3600 --batch 128 --optimizer adamw \\
        --lr 4e-3 --schedule cosine --warmup 200 --weight-decay .05 --ema .998 \\
        --label-smoothing .1 --flip --crop-padding 4 --seeds 5 --out runs/five  # an hour each
    jaxdet compare runs/five/*/                      # test scores, their mean and spread
    jaxdet train cifar10 --root DIR --time-budget 3600 --schedule piecewise --lr .01 --batch 20
    jaxdet sweep cifar10 --root DIR --grid arch      # compares the networks; GRIDS has other grids
    jaxdet compare runs/a runs/b --report out.md

DIR holds CIFAR-10 in one of the layouts that `jaxdet.data.cifar10` lists.  Nothing is downloaded.
Validation images are drawn from the training images; nothing is selected on test images.
`--monitor test` records test scores before the first epoch and after each; with it,
`--val-fraction 0` trains on all training images, and the last checkpoint is the result.

Test accuracy of `tiny` (227,866 parameters) with the options above and in the table.  Each row is
one run with one seed, on 2 CPU cores, trained on JPEG copies of the images, which lower the
accuracy:

| options | minutes | epochs done, planned | `eval` | `eval --tta true` |
|---|---|---|---|---|
| `--time-budget 3600` | 60 | 94 of 97 | 0.868 | 0.882 |
| `--time-budget 1700 --cutout .5 --tta true` | 28 | 32 of 37 | 0.867 | 0.878 |
| `--time-budget 1560`, a slower machine | 24 | 19 | 0.853 | |

All scores are of the checkpoint with the best validation accuracy.  In the first run this accuracy
was 0.884, at epoch 46, and the training accuracy rises to 0.983.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxdet.config import (
    ClassWeightOptions,
    Optimizer,
    Schedule,
    cached_reader,
    check_fractions,
    check_minima,
    check_starting_run,
    check_train_fraction,
    option,
    parse_class_weights,
    task_hparams,
)
from jaxdet.errors import InputError
from jaxdet.models import registry

if TYPE_CHECKING:
    from flax import linen as nn

    from jaxdet.data.sources import ArraySource, Source
    from jaxdet.tasks.classify import ClassificationTask
    from jaxdet.training.experiment import Experiment

TUTORIALS = (  # PyTorch's tutorial network and its variants
    *("tutorial", "doubled", "extra_conv", "extra_dense", "extra_both", "two_3x3", "inception"),
)
MAX_PADDING = 32  # pixels: a side of the image
MAX_PARAMETERS = 262_144

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*registry.names("cifar")]


@dataclass(frozen=True)
class Config(ClassWeightOptions):
    """Classify color images of 32 x 32 pixels."""

    HPARAMS: ClassVar = ("dropout",)
    SUBSET_FIELDS: ClassVar = ("train_fraction",)
    LIMITS: ClassVar = {"parameters": MAX_PARAMETERS, "total_seconds": 3600}
    GRIDS: ClassVar = {
        "arch": (
            *(f"--model {name}" for name in TUTORIALS),
            *("--model tutorial --norm", "--model doubled --dropout .5"),
            *("--model narrow", "--model tiny"),
        ),
        "batch": "--batch 4 16 20 128",
        "aug": "--flip false true --crop-padding 0 4",
        "loss": "--loss cross_entropy binary squared hinge",
        "opt": (
            *("--optimizer sgd --momentum 0 --lr .005", "--optimizer sgd --lr .005"),
            *("--optimizer momentum --lr .005", "--optimizer rmsprop --momentum 0 --beta2 .99"),
            *("--optimizer adam", "--optimizer adamw --weight-decay .05"),
        ),
        "act": "--activation relu leaky_relu elu gelu swish tanh sigmoid",
    }

    root: str = ""
    """folder or tar file with CIFAR-10; or tfds:NAME, a data set that tensorflow-datasets has
    prepared in ~/tensorflow_datasets or in the folder named by TFDS_DATA_DIR"""
    val_fraction: float = 0.1
    """fraction of the training images that is set aside for validation; 0, which needs --monitor
    test, trains on all of them, and the last checkpoint counts as the best"""
    train_fraction: float = 1.0
    """fraction of the training images (without those set aside for validation) that is used; at
    least one image is used"""
    split_seed: int = 0
    """seed of the random choice of validation images"""
    model: Model = "tutorial"
    """network: PyTorch's tutorial network (tutorial), a variant of it (doubled to inception), or a
    residual or depthwise network (resnet20 to tiniest)"""
    channels: tuple[int, ...] = ()
    """tutorial and its variants: number of channels of each convolution before a pool, such as 6
    16; empty: the model's default"""
    fc_widths: tuple[int, ...] = ()
    """tutorial and its variants: number of units of each hidden dense layer, such as 120 84; empty:
    the model's default"""
    activation: Literal[
        "default", "relu", "leaky_relu", "elu", "gelu", "swish", "tanh", "sigmoid"
    ] = "default"
    """activation of all hidden layers; default: gelu for tiny, deep and tiniest, relu for all
    others; resnet20, narrow and tiniest allow only default"""
    norm: bool = False
    """tutorial and its variants: add batch norm after each convolution; the other models always
    have norms"""
    dropout: float = 0.0
    """dropout rate: after each hidden dense layer of tutorial and its variants, before the last
    layer of other models; 0: no dropout"""
    loss: Literal["cross_entropy", "binary", "squared", "hinge"] = "cross_entropy"
    """classification loss: softmax cross-entropy (cross_entropy), binary cross-entropy of each
    class (binary), squared error of the softmax probabilities (squared), or multi-class hinge loss
    (hinge)"""
    label_smoothing: float = 0.0
    """fraction of the target probability that is spread evenly over all classes; 0: no label
    smoothing"""
    flip: bool = False
    """flip half of the training images horizontally"""
    crop_padding: int = 0
    """pad training images by this many pixels on each side, usually 4, and crop them at random to
    their original size; 0: no crop"""
    cutout: float = 0.0
    """largest side of a random gray rectangle in each training image, as a fraction of the image's
    side; 0: no rectangle"""
    brightness_contrast: float = 0.0
    """random change of brightness, by at most this fraction of the range of pixel values, and of
    contrast, by at most this fraction; 0: no change"""
    color_jitter: float = 0.0
    """random change of saturation, by at most this fraction, and rotation of hue, by at most this
    fraction of a tenth of a turn; 0: no change"""
    mixup_alpha: float = 0.0
    """mix each training image with another one (mixup), with a weight drawn from Beta(alpha,
    alpha) for this alpha; 0: no mixup"""
    tta: bool = False
    """test-time augmentation: predict from the mean logits of an image and its mirror image; the
    loss is not affected"""
    max_params: int = MAX_PARAMETERS
    best: Literal["accuracy"] = "accuracy"
    epochs: int = 2
    batch: int = 4
    eval_batch: int = 400
    optimizer: Optimizer = "sgd"
    count_operations: bool = True
    schedule: Schedule = "constant"


def network(config: Config, classes: int = 10) -> "tuple[nn.Module, tuple[int, ...]]":
    """The network of a `Config`, and its input shape (B, H, W, C)."""
    from flax import linen as nn

    from jaxdet.models.layers import layer_options

    check(config)
    fields = layer_options(bfloat16=config.bfloat16, conv=config.conv)
    fields |= {"classes": classes, "rate": 1.0}  # rate: multiplied by `dropout`, which is traced
    if config.activation != "default":
        fields["activation"] = getattr(nn, config.activation)
    if config.model in TUTORIALS:
        widths = {"channels": config.channels, "fc_widths": config.fc_widths}
        fields |= {name: values for name, values in widths.items() if values}
        fields["norm"] = config.norm
    return registry.get(config.model).build(**fields), (1, 32, 32, 3)


def summarize(root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(a table row per class, notes) on the data at `root`, for `jaxdet data inspect`."""
    from jaxdet.data import cifar10

    return cifar10.summarize(root)


def build(config: Config) -> "Experiment":
    """Read the data of a `Config`, and build its experiment."""
    splits, classes = _read_splits(config)
    subset = partial(_subset, from_splits(config, classes, splits))
    return replace(subset(config), subset=subset)


def _subset(whole: "Experiment", config: Config) -> "Experiment":
    """The experiment `whole` with only the first `config.train_fraction` of its training images."""
    train = whole.splits["train"]
    count = max(round(config.train_fraction * len(train)), 1)
    return replace(whole, config=config, splits=whole.splits | {"train": train.first(count)})


def from_splits(
    config: Config, classes: tuple[str, ...], splits: "dict[str, Source]"
) -> "Experiment":
    """The experiment of a `Config` on given data, {split: source}."""
    from jaxdet.configs import class_weights, starting_weights
    from jaxdet.data import images
    from jaxdet.training.experiment import Experiment

    net, (_, *shape) = network(config, len(classes))
    normalized = "(pixel value / 255 - .5) / .5"
    return Experiment(
        task=make_task(config, net, classes, class_weights(config, classes, splits)),
        splits=splits,
        hparams=task_hparams(config),
        metadata={
            "classes": list(classes),
            "input": shape,
            "normalization": normalized,
        },
        config=config,
        name="cifar10",
        read_image=partial(images.read_resized_float, side=shape[0]),
        load_pretrained=starting_weights("cifar10", config, classes, normalized),
    )


def make_task(
    config: Config,
    net: "nn.Module",
    classes: tuple[str, ...],
    class_weights: tuple[float, ...] = (),
) -> "ClassificationTask":
    """The task of a `Config`, for a network and the names of its classes.

    class_weights: see `ClassificationTask`.
    """
    from jaxdet.ops import augment
    from jaxdet.tasks.classify import ClassificationTask

    mix = partial(augment.mixup, alpha=config.mixup_alpha) if config.mixup_alpha else None
    return ClassificationTask(
        net,
        classes,
        transform=_transform(config),
        mix=mix,
        loss_name=config.loss,
        label_smoothing=config.label_smoothing,
        tta=config.tta,
        class_weights=class_weights,
    )


def _transform(config: Config) -> Callable | None:
    """The function that augments one training image with values in [0, 255], or None."""
    import jax.numpy as jnp

    from jaxdet.ops import augment

    def rescaled(transform: Callable) -> Callable:
        """A transform of values in [0, 1] as a transform of values in [0, 255]."""

        def transformed(key, sample):
            unit = sample._replace(image=sample.image / jnp.float32(255))
            return sample._replace(image=255 * transform(key, unit).image)

        return transformed

    lighting = partial(augment.brightness_contrast, strength=config.brightness_contrast)
    color = partial(augment.color_jitter, strength=config.color_jitter)
    transforms = (
        (augment.random_flip, config.flip),
        (partial(augment.pad_and_crop, pad=config.crop_padding), config.crop_padding),
        (partial(augment.cutout, fill=128, size=config.cutout), config.cutout),
        (rescaled(lighting), config.brightness_contrast),
        (rescaled(color), config.color_jitter),
    )
    used = [transform for transform, on in transforms if on]
    return augment.on_image(augment.compose(*used)) if used else None


@cached_reader("root", "val_fraction", "split_seed")
def _read_splits(config: Any) -> "tuple[dict[str, ArraySource], tuple[str, ...]]":
    """({split: shuffled source}, class names); `val` is drawn from the training images."""
    import numpy as np

    from jaxdet.data import cifar10

    data, classes = cifar10.read(config.root)
    random, images = np.random.default_rng(config.split_seed), data["train"]
    order = random.permutation(len(images))
    count = max(round(config.val_fraction * len(images)), 1) if config.val_fraction else 0
    if count == len(images):
        raise InputError(
            f"--val-fraction must leave images for training, got {config.val_fraction:g} of "
            f"{count} images"
        )
    test = data["test"].take(random.permutation(len(data["test"])))
    val = {"val": images.take(order[:count])} if count else {}
    return {"train": images.take(order[count:]), **val, "test": test}, classes


def check(config: Config) -> None:
    """Raise InputError for invalid options, before any image is read."""
    check_fractions(config, "val_fraction", "dropout", "label_smoothing", "cutout")
    check_fractions(config, "brightness_contrast", "color_jitter")
    check_starting_run(config)
    parse_class_weights(config.class_weights)
    if not config.val_fraction and config.monitor != "test":
        raise InputError(
            "--val-fraction must be above 0, got 0: validation images select the best checkpoint; "
            "with --monitor test it may be 0, and the last checkpoint counts as the best"
        )
    check_train_fraction(config)
    if not 0 <= config.crop_padding <= MAX_PADDING:
        raise InputError(
            f"--crop-padding must be from 0 to {MAX_PADDING} pixels, got {config.crop_padding}"
        )
    check_minima(config, mixup_alpha=0)
    for name in ("channels", "fc_widths"):
        if min(getattr(config, name), default=1) < 1:
            values = " ".join(map(str, getattr(config, name)))
            raise InputError(f"each value of {option(name)} must be at least 1, got {values}")
    if config.model not in TUTORIALS and (config.channels or config.fc_widths or config.norm):
        raise InputError(
            f"--channels, --fc-widths and --norm need --model {' or '.join(TUTORIALS)}, got "
            f"{config.model}"
        )
    if config.activation != "default" and config.model in ("resnet20", "narrow", "tiniest"):
        raise InputError(
            f"--activation needs a --model other than resnet20, narrow and tiniest, got "
            f"{config.model}"
        )
