"""CIFAR-10: small images in ten classes, within a budget of parameters and of time (seed 003).

    jaxdet train cifar10 --root DIR                                  # PyTorch's tutorial, 2 epochs
    jaxdet eval runs/cifar10 --tta true                              # asks mirror images as well
    jaxdet describe runs/cifar10                                     # every layer, every operation
    jaxdet train cifar10 --root DIR --model tiny --time-budget 3600 --batch 128 --optimizer adamw \\
        --lr 4e-3 --schedule cosine --warmup 200 --weight-decay .05 --ema .998 --label-smoothing .1 \\
        --flip --crop-padding 4 --seeds 5 --out runs/five    # of validation; each has the hour
    jaxdet compare runs/five/*/                      # test scores, their mean and spread
    jaxdet train cifar10 --root DIR --time-budget 3600 --schedule piecewise --lr .01 --batch 20
                                 # .01, .001, .0001 for 50, 25, 25% of the epochs of an hour
    jaxdet sweep cifar10 --root DIR --grid arch      # the table of the variants; other grids: GRIDS
    jaxdet compare runs/a runs/b --report out.md     # the report of the seed

DIR has CIFAR-10 in any of its forms: `jaxdet.data.cifar10` lists them.  Nothing is downloaded.  The
validation part is cut from the training images; the test images choose nothing.

On JPEG copies of the set (accuracy is lower on them), `tiny` has 227,866 parameters.  On 2 CPU
cores, one run of one seed each, test accuracy by the image and with `eval --tta true`:

| options above and | minutes | epochs | test | with --tta |
|---|---|---|---|---|
| `--time-budget 3600` | 60 | 94 of 97 | 0.868 | 0.882 |
| `--time-budget 1700 --cutout .5 --tta true` | 28 | 32 of 37 | 0.867 | 0.878 |
| `--time-budget 1560`, a slower machine | 24 | 19 | 0.853 | |

Validation of the first is highest at epoch 46 (0.884), while training goes on to 0.983.  Test
scores are those of the checkpoint that validation chose.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from jaxdet.config import Schedule, TrainConfig, cached_reader, check_fractions, task_hparams
from jaxdet.errors import InputError
from jaxdet.models import registry
from jaxdet.training.experiment import Experiment

Model = Literal[*registry.names("cifar")]
TUTORIALS = (
    *("tutorial", "doubled", "extra_conv", "extra_dense", "extra_both", "two_3x3", "inception"),
)


@dataclass(frozen=True)
class Config(TrainConfig):
    """One label for images of 32 x 32 pixels."""

    HPARAMS: ClassVar = ("dropout",)
    SUBSET_FIELDS: ClassVar = ("train_fraction",)
    LIMITS: ClassVar = {"parameters": 262_144, "total_seconds": 3600}  # of seed 003
    GRIDS: ClassVar = {
        "arch": (
            *(f"--model {name}" for name in TUTORIALS),
            *("--model tutorial --norm", "--model doubled --dropout .5"),
            *("--model narrow", "--model tiny"),
        ),
        "batch": "--batch 4 16 20 128",
        "aug": "--flip false true --crop-padding 0 4",
        "loss": "--loss cross_entropy binary squared hinge",
        "opt": "--optimizer sgd adamw --momentum 0 0.9",
        "act": "--activation relu leaky_relu elu gelu swish tanh sigmoid",
    }

    root: str = ""
    """folder or file of CIFAR-10, or tfds:NAME, a set prepared before in ~/tensorflow_datasets or
    the folder that the variable TFDS_DATA_DIR names"""
    val_fraction: float = 0.1
    """share of the training images for validation"""
    train_fraction: float = 1.0
    """share of the other training images that is used"""
    split_seed: int = 0
    """draws the images for validation"""
    model: Model = "tutorial"
    """network: PyTorch's tutorial and its variants, or a larger one"""
    channels: tuple[int, ...] = ()
    """tutorial and its variants: channels of the convolutions, such as 6 16; () is the model's"""
    fc_widths: tuple[int, ...] = ()
    """tutorial and its variants: outputs of the dense layers, such as 120 84; () is the model's"""
    activation: Literal["own", "relu", "leaky_relu", "elu", "gelu", "swish", "tanh", "sigmoid"] = (
        "own"
    )
    """of all hidden layers; own is the network's (relu; tiny and deep: gelu)"""
    norm: bool = False
    """tutorial and its variants: batch norm after each convolution; the others have it"""
    dropout: float = 0.0
    """share of the numbers before a dense layer that is dropped"""
    loss: Literal["cross_entropy", "binary", "squared", "hinge"] = "cross_entropy"
    """loss of the label"""
    label_smoothing: float = 0.0
    """label smoothing"""
    flip: bool = False
    """mirror half of the training images"""
    crop_padding: int = 0
    """training images are padded by so many pixels and cropped anywhere; the usual is 4"""
    cutout: float = 0.0
    """hide a rectangle of up to this share of a training image's sides"""
    brightness_contrast: float = 0.0
    """brightness and contrast of training images change by up to this share"""
    color_jitter: float = 0.0
    """saturation of training images changes by up to this share, hue by up to a tenth of it"""
    mixup_alpha: float = 0.0
    """training images are mixed by shares from Beta(mixup, mixup)"""
    tta: bool = False
    """answer by an image and its mirror image; the loss of validation stays that of the image"""
    max_params: int = LIMITS["parameters"]
    epochs: int = 2
    batch: int = 4
    eval_batch: int = 400
    optimizer: Literal["adamw", "sgd"] = "sgd"
    schedule: Schedule = "constant"


def network(config, classes=10):
    """The network of a `Config`, and the shape [B, H, W, C] of its input."""
    import jax.numpy as jnp
    from flax import linen as nn

    from jaxdet.kernels import conv

    check(config)
    fields = {
        "classes": classes,
        "conv_general_dilated": partial(conv.conv_general_dilated, impl=config.conv),
        "dtype": jnp.bfloat16 if config.bfloat16 else None,
        "rate": 1.0,  # times `dropout`, a number of the state
    }
    if config.activation != "own":
        fields["activation"] = getattr(nn, config.activation)
    if config.model in TUTORIALS:
        sizes = {"channels": config.channels, "fc_widths": config.fc_widths}
        fields |= {name: value for name, value in sizes.items() if value}
        fields["norm"] = config.norm
    net = registry.get(config.model).build(**fields)
    return net, (1, 32, 32, 3)


def build(config):
    """The system of a `Config`, with its data."""
    splits, classes = _data(config)
    whole = system(config, classes, splits)
    return _part(whole, config)._replace(part=partial(_part, whole))


def system(config, classes, splits):
    """The system of a `Config` for data of these classes."""
    from jaxdet.data import images

    net, (_, *shape) = network(config, len(classes))
    return Experiment(
        task=task_of(config, net, classes),
        splits=splits,
        hparams=task_hparams(config),
        about={
            "classes": list(classes),
            "input": shape,
            "normalisation": "(level / 255 - .5) / .5",
        },
        read=partial(images.read_resized_float, side=shape[0]),
    )


def task_of(config, net, classes):
    """The task of a `Config`, for a network and the names of its classes."""
    from jaxdet.tasks import classify

    how = {
        "loss_kind": config.loss,
        "label_smoothing": config.label_smoothing,
        "mirrored": config.tta,
    }
    return classify.ClassificationTask(net, classes, _change(config), _mix(config), **how).task()


def inspect(root):
    """({column: value} a class, what is wrong with files) of the folder or file `root`."""
    from jaxdet.data import cifar10

    return cifar10.summarize(root)


@cached_reader("root", "val_fraction", "split_seed")
def _data(config):
    """({part: source}, classes), shuffled: validation images are some of those for training."""
    import numpy as np

    from jaxdet.data import cifar10

    found, classes = cifar10.read(config.root)
    random, images = np.random.default_rng(config.split_seed), found["train"]
    order = random.permutation(len(images))
    held = max(round(config.val_fraction * len(images)), 1)
    if held == len(images):
        raise InputError(
            f"--val-fraction {config.val_fraction:g} of {held} images leaves none for training"
        )
    test = found["test"].take(random.permutation(len(found["test"])))
    train, val = (images.take(order[rows]) for rows in (slice(held, None), slice(held)))
    return {"train": train, "val": val, "test": test}, classes


def _part(whole, config):
    """A system of all training images with the share that `config` uses, the first ones."""
    train = whole.splits["train"]
    used = max(round(config.train_fraction * len(train)), 1)
    return whole._replace(splits=whole.splits | {"train": train.first(used)})


def _change(config):
    """How a training image is changed, or None."""
    import jax.numpy as jnp

    from jaxdet.ops import augment

    def scaled(transform):
        """The transform of pixel values in [0, 1] for those in [0, 255]."""

        def rescaled(key, sample):
            unit = sample._replace(image=sample.image / jnp.float32(255))
            return sample._replace(image=255 * transform(key, unit).image)

        return rescaled

    lighting = partial(augment.brightness_contrast, strength=config.brightness_contrast)
    color = partial(augment.color_jitter, strength=config.color_jitter)
    transforms = (
        (augment.random_flip, config.flip),
        (partial(augment.pad_and_crop, pad=config.crop_padding), config.crop_padding),
        (partial(augment.cutout, fill=128, size=config.cutout), config.cutout),
        (scaled(lighting), config.brightness_contrast),
        (scaled(color), config.color_jitter),
    )
    transforms = [transform for transform, used in transforms if used]
    return augment.on_image(augment.compose(*transforms)) if transforms else None


def _mix(config):
    """How training images are mixed, or None."""
    from jaxdet.ops import augment

    return partial(augment.mixup, alpha=config.mixup_alpha) if config.mixup_alpha else None


def check(config):
    """Refuse what no training can use, before any image is read."""
    check_fractions(
        config,
        "val_fraction",
        "dropout",
        "label_smoothing",
        "cutout",
        "brightness_contrast",
        "color_jitter",
    )
    if not config.val_fraction:
        raise InputError(
            "--val-fraction 0: a share above 0 is wanted; it chooses the best checkpoint"
        )
    if not 0 < config.train_fraction <= 1:
        raise InputError(
            f"--train-fraction {config.train_fraction:g}: above 0 and at most 1 is wanted"
        )
    if not 0 <= config.crop_padding <= 32:
        raise InputError(f"--crop {config.crop_padding}: 0 to 32 pixels are wanted")
    if config.mixup_alpha < 0:
        raise InputError(f"--mixup {config.mixup_alpha:g}: at least 0 is wanted")
    if min(config.channels + config.fc_widths, default=1) < 1:
        raise InputError("--channels and --fc-widths: every width must be at least 1")
    sized = config.channels or config.fc_widths or config.norm
    if sized and config.model not in TUTORIALS:
        raise InputError(f"--channels, --fc-widths and --norm are not for --model {config.model}")
    if config.activation != "own" and config.model in ("resnet20", "narrow", "tiniest"):
        raise InputError(f"--activation is not for --model {config.model}")
