"""How training photos and their boxes are changed: options that detectors share."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxdet.configs import base
from jaxdet.configs.base import Training
from jaxdet.errors import InputError


@dataclass(frozen=True)
class Changing(Training):
    """Changes of training photos: 0, or a scale of 1 1, leaves one out."""

    flip: bool = True
    """mirror half of the training photos left to right"""
    flip_down: bool = False
    """mirror half of the training photos upside down"""
    scale: tuple[float, float] = (0.75, 1.3)
    """training photos are scaled by a factor in this range"""
    shift: float = 0.1
    """training photos are moved by up to this share of a side"""
    crop: tuple[float, float] = (1.0, 1.0)
    """part of half of the training photos that is kept, as shares of the area, least and most"""
    rotate: float = 0.0
    """half of the training photos are turned by up to this many degrees; seed 002 has 30"""
    light: float = 0.2
    """brightness and contrast of training photos change by up to this share"""
    colour: float = 0.2
    """saturation changes by up to this share, hue by a tenth of it"""
    noise: float = 0.0
    """standard deviation of Gaussian noise, at most"""
    cutout: int = 0
    """grey rectangles that hide parts of a training photo"""
    photometric: Literal["all", "one", "some"] = "all"
    """take all of light, colour, noise and cutout a photo, or one of them, or half of them"""
    mosaic: float = 0.0
    """share of training photos that are made of four"""
    mixup: float = 0.0
    """share of training photos that are a mixture of two"""
    plain_last: int = 5
    """epochs at the end without mosaic and mixup"""


def change(config):
    """The function (keys [B], batch, at) -> batch of a `Changing`."""
    import jax

    from jaxdet import rng
    from jaxdet.ops import changes

    one = changes.compose(*_geometric(config), *_photometric(config))

    def changed(each, batch, at):
        scenes = changes.Scene(*(batch[name] for name in changes.Scene._fields))
        known = "steps" in at.hyper
        epochs = at.hyper["steps"] // at.hyper["epoch_steps"] if known else config.epochs
        chance = jax.numpy.where(at.epoch < epochs - config.plain_last, 1.0, 0.0)
        for number, part in enumerate(_joins(config)):
            scenes = part(rng.each(each, number), scenes, chance)
        scenes = jax.vmap(one)(rng.each(each, len(_joins(config))), scenes)
        return batch | scenes._asdict()

    return changed


def _joins(config):
    """Functions (keys [B], scenes [B], factor of the chance) -> scenes [B]."""
    from jaxdet.ops import changes

    def joined(part, share, each, scenes, chance):
        return part(each, scenes, chance=share * chance)

    parts = {changes.mosaic: config.mosaic, changes.mixup: config.mixup}
    return [partial(joined, part, share) for part, share in parts.items() if share]


def _geometric(config):
    """Parts that change where things are."""
    from jaxdet.ops import changes

    zoom = partial(changes.zoom, scale=config.scale, shift=config.shift)
    crop = changes.sometimes(0.5, partial(changes.random_resized_crop, area=config.crop))
    rotate = changes.sometimes(0.5, partial(changes.rotate, degrees=config.rotate))
    parts = (
        (changes.mirror, config.flip),
        (changes.mirror_down, config.flip_down),
        (crop, config.crop != (1.0, 1.0)),
        (rotate, config.rotate),
        (zoom, config.scale != (1.0, 1.0) or config.shift),
    )
    return [part for part, wanted in parts if wanted]


def _photometric(config):
    """Parts that change how things look."""
    from jaxdet.ops import changes

    parts = [
        partial(getattr(changes, name), strength=getattr(config, name))
        for name in ("light", "colour", "noise")
        if getattr(config, name)
    ]
    if config.cutout:
        parts.append(partial(changes.cutout, count=config.cutout))
    match config.photometric:
        case "one" if parts:
            return [changes.one_of(*parts)]
        case "some" if parts:
            return [changes.some_of(-(-len(parts) // 2), *parts)]
    return parts


def check(config):
    """Refuse changes that cannot be made; InputError names the option."""
    base.check_scale(config)
    base.check_shares(config, "shift", "light", "colour", "noise")
    low, high = config.crop
    if not 0 < low <= high <= 1:
        raise InputError(f"--crop {low:g} {high:g}: two shares, the smaller first, are wanted")
    for name, most in (("mosaic", 1), ("mixup", 1), ("rotate", 180), ("cutout", 100)):
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise InputError(f"--{name} {value:g}: a number from 0 to {most} is wanted")
    if (config.mosaic or config.mixup) and config.plain_last >= config.epochs:
        epochs = f"{config.epochs} epochs: none is left for mosaic and mixup"
        raise InputError(f"--plain-last {config.plain_last} of {epochs}")
    if config.plain_last < 0:
        raise InputError(f"--plain-last {config.plain_last}: at least 0 is wanted")
