"""Faces: who it is, and whether two images show one person (seed 004).

    jaxdet data inspect faces --root DIR        # images a person, sizes, files that are no images
    jaxdet train faces --root DIR
    jaxdet eval runs/faces                      # accuracy; AUC and equal error rate of all pairs
    jaxdet train faces --root DIR --identities 20   # the others, whom it never sees, are for `eval
    jaxdet eval runs/faces --split others       # --split others`
    jaxdet predict runs/faces TEST --submit classification.csv --sample SAMPLE.csv
    jaxdet verify probe runs/faces FOLDER       # whether a plane tells FOLDER's people apart

ORL's 40 people, 64 pixels, 60 epochs, 5 minutes on 2 CPU cores beside other work: with
`--size 64 --val-fraction 0 --test-fraction .3`, 7 images each for training, the last checkpoint names 0.992
of the other 120 images rightly.  Twelve people of LFW, its split: with `--size 64 --epochs 40
--cutout .3 --label-smoothing .1` 0.985 of the 65 test images, AUC .991 and equal error rate .026 of their
pairs, in 12 minutes beside other work.  Strangers are harder: of ORL, 20 people learnt (`--identities
20 --val-fraction 0 --test-fraction 0`), all pairs of images of the 20 others, the last checkpoint:

| options besides | AUC | equal error rate |
|---|---|---|
| ImageNet's weights, of which nothing learns | .986 | .056 |
| `--freeze-stages 5 --freeze-bn --backbone-lr .1 --label-smoothing .1 --epochs 30` instead | .989 | .049 |
| from scratch (embeddings without the mirror image) | .938 | .129 |
| `--embedding-loss triplet_hard --embedding-loss-weight 1 --samples-per-class 4` | .946 | .123 |
| these, `--cutout .4 --brightness-contrast .4 --scale .8 1.25 --shift .1 --label-smoothing .1` | .945 | .100 |
| these changes, `--head arcface --scale 16 --margin .3` | .952 | .126 |

ImageNet's weights are `--model lite0 --weights package:lite0 --backbone-stages 6 --freeze-stages 6 --embedding-dim 0 --bnneck
true --size 96 --epochs 40`.  The map of stride 16, averaged and normalised, is what tells strangers
apart: without any training cosines of Lite0's maps of strides 4, 8, 16 and 32 have, less their
mean, an AUC of .945, .967, .989 and .970.  From scratch 20 people are too few: pixels, whitened
within a person, have .959.

DIR has a folder a person, PERSON/FILE, or PART/PERSON/FILE with the parts train, val (or dev) and
test; or is a tar file of that.  Without parts, images of every person are cut for validation and
test; nothing is cut where there are train and val.  Files right in test/ are for `predict`.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from jaxdet.config import check_fractions, check_notes, task_hparams
from jaxdet.configs import backbones, embedders, stages
from jaxdet.configs.embedders import Embedding
from jaxdet.errors import InputError
from jaxdet.training.experiment import Experiment

SMALLEST = 32  # pixels a side that stem and stages leave something of


@dataclass(frozen=True)
class Config(Embedding):
    """Embeddings of faces, and the people of the training set."""

    HPARAMS: ClassVar = ("dropout", "embedding_loss_weight")
    GRIDS: ClassVar = stages.GRIDS
    CUTOFFS: ClassVar = {"accuracy": (0.9, 0.84, 0.82), "verification": (0.55, 0.49, 0.3)}

    root: str = ""
    """folder or tar file with a folder of images a person"""
    stream: bool = False
    """read images when they are needed instead of holding them in memory (jaxdet[data])"""
    identities: int = 0
    """people to learn, in the order of their names; the others are the split `others`; 0: all"""
    val_fraction: float = 0.1
    """share of the images of a person for validation, where the data have no part for it; 0 judges
    on the training images, which choose nothing: take the last checkpoint then"""
    test_fraction: float = 0.2
    """share of the images of a person for the test, where the data have no part for it and not both
    train and val; 0 tests on those for validation"""
    train_fraction: float = 1.0
    """share of the training images of each person that is used, one image at least"""
    split_seed: int = 0
    """draws these images"""
    on_invalid: Literal["skip", "error"] = "skip"
    """what to do with a file that is no image: leave it out and say so, or stop"""
    logit_scale: float = 0.0
    """arcface, cosface: factor of the cosines; 0 is the paper's 64, which is for many people"""
    margin: float = 0.0
    """margin of --head, of l_softmax 1, 2, 3 or 4; 0 is that of its paper"""
    embedding_loss: Literal["none", "center", "contrastive", "triplet_hard", "triplet_semihard"] = (
        "none"
    )
    """loss of the embeddings beside the cross entropy"""
    embedding_loss_weight: float = 0.003
    """weight of --embedding-loss; center loss has 0.003 in its paper, pairs and triplets want about 1"""
    samples_per_class: int = 0
    """so many images of a person stand together in a batch, beside groups of others; 0: shuffled;
    pairs want 4"""
    label_smoothing: float = 0.0
    """label smoothing"""
    tta: bool = True
    """embeddings are the sum of those of an image and its mirror image"""
    flip: bool = True
    """mirror half of the training images left to right"""
    scale: tuple[float, float] = (0.9, 1.1)
    """training images are scaled by a factor in this range"""
    shift: float = 0.06
    """training images are moved by up to this share of a side"""
    rotate: float = 0.0
    """training images are turned by up to so many degrees either way"""
    brightness_contrast: float = 0.2
    """brightness and contrast of training images change by up to this share"""
    cutout: float = 0.0
    """hide a rectangle of up to this share of a training image's sides"""
    epochs: int = 60
    batch: int = 32
    eval_batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.99


told, network = stages.told, embedders.network


def inspect(root):
    """`data.faces.summarize` of a folder, for `jaxdet data inspect`."""
    from jaxdet.data import faces

    return faces.summarize(root)


def build(config):
    """The system of a `Config`, with its data."""
    from jaxdet.data import faces

    classes, splits, notes = faces.read_dataset(config)
    check_notes(config, notes)
    return system(config, classes, splits)._replace(notes=notes)


def system(config, classes, splits):
    """The system of a `Config` for data of these people."""
    from jaxdet.data import images, sampler

    net, (_, *shape) = network(config, len(classes))
    labels = splits["train"].labels
    return Experiment(
        task=_verifier(config, net, len(classes)).task(),
        splits=splits,
        hparams=task_hparams(config),
        about={
            "classes": list(classes),
            "input": shape,
            "normalisation": "(level / 255 - {}) / {}".format(*embedders.levels(config)),
        },
        weights=partial(embedders.pretrained, config) if config.weights else None,
        learns=backbones.factors(config),
        read=partial(images.read_resized_float, side=config.size),
        order=sampler.pk_sampler(labels, config.samples_per_class)
        if config.samples_per_class
        else None,
    )


def _verifier(config, net, count):
    """The `tasks.verify.Verifier` of a `Config` for so many people."""
    from jaxdet.tasks import verify

    margins = {"logit_scale": config.logit_scale, "margin": config.margin}
    return verify.VerificationTask(
        net,
        count,
        _change(config),
        config.head,
        config.embedding_loss,
        tuple((name, value) for name, value in margins.items() if value),
        smoothing=config.label_smoothing,
        mirrored=config.tta,
        levels=embedders.levels(config),
    )


def _change(config):
    """How a training image of levels in [0, 255] is changed."""
    import jax
    import jax.numpy as jnp

    from jaxdet.ops import augment

    standard = partial(
        augment.standard,
        flip=config.flip,
        scale=config.scale,
        translate=config.shift,
        lighting=config.brightness_contrast,
    )
    most = config.rotate * jnp.pi / 180

    def change(key, image):
        place, hide, turn = (jax.random.fold_in(key, number) for number in range(3))
        image = augment.on_image(standard)(place, image / jnp.float32(255))
        if most:
            image = augment.rotate(image, jax.random.uniform(turn, minval=-most, maxval=most))
        if config.cutout:
            image = augment.on_image(partial(augment.cutout, size=config.cutout))(hide, image)
        return 255 * image

    return change


def check(config):
    """Refuse what no training can use, before any image is read."""
    embedders.check(config)
    if config.size < SMALLEST:
        raise InputError(f"--size {config.size}: at least {SMALLEST} pixels are wanted")
    check_fractions(
        config,
        "val_fraction",
        "test_fraction",
        "dropout",
        "label_smoothing",
        "shift",
        "brightness_contrast",
        "cutout",
    )
    if not 0 < config.train_fraction <= 1:
        raise InputError(
            f"--train-fraction {config.train_fraction:g}: above 0 and at most 1 is wanted"
        )
    if not 0 <= config.rotate <= 180:
        raise InputError(f"--rotate {config.rotate:g}: 0 to 180 degrees are wanted")
    if not 0 < config.scale[0] <= config.scale[1]:
        raise InputError(f"--scale {config.scale}: two factors above 0, the smaller first")
    if (
        config.identities < 0
        or config.samples_per_class < 0
        or config.batch % max(config.samples_per_class, 1)
    ):
        raise InputError(
            f"--samples-per-class {config.samples_per_class}: a divisor of --batch {config.batch} is wanted, and "
            f"--identities {config.identities} is at least 0"
        )
    if config.fc_widths and config.head != "softmax":
        raise InputError(f"--fc-widths is not for --head {config.head}, whose layer is linear")
    if config.logit_scale and config.head not in ("arcface", "cosface"):
        raise InputError(f"--scale is not for --head {config.head}")
    if config.head == "l_softmax" and config.margin not in (0, 1, 2, 3, 4):
        raise InputError(f"--margin {config.margin:g}: --head l_softmax wants 1, 2, 3 or 4")
