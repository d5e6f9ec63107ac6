"""Training-time augmentation of detection batches, from `AugmentOptions`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxdet import rng
from jaxdet.config import AugmentOptions
from jaxdet.ops import augment
from jaxdet.types import Batch, StepContext


def pipeline(config: AugmentOptions) -> Callable[[jax.Array, Batch, StepContext], Batch]:
    """The function `(keys [B], batch, context) -> batch` that applies the options.

    Mosaic and mixup come first, and are off in the last `close_mosaic_epochs` epochs.
    """
    mixes = ((augment.mosaic, config.mosaic), (augment.detection_mixup, config.mixup))
    mixes = [(mix, probability) for mix, probability in mixes if probability]
    transform = augment.compose(*_geometric(config), *_photometric(config))

    def apply(keys: jax.Array, batch: Batch, context: StepContext) -> Batch:
        samples = augment.Sample(*(batch[name] for name in augment.Sample._fields))
        hparams = context.hparams
        epochs = config.epochs
        if "steps" in hparams:
            epochs = hparams["steps"] // hparams["epoch_steps"]
        on = jnp.where(context.epoch < epochs - config.close_mosaic_epochs, 1.0, 0.0)
        for i, (mix, probability) in enumerate(mixes):
            own = rng.fold_in_each(keys, i)
            samples = mix(own, samples, probability=probability * on, axis=context.axis)
        samples = jax.vmap(transform)(rng.fold_in_each(keys, len(mixes)), samples)
        return batch | samples._asdict()

    return apply


def _geometric(config: AugmentOptions) -> list[augment.Transform]:
    crop = partial(augment.random_resized_crop, area=config.crop_area)
    rotate = partial(augment.random_rotate, degrees=config.rotate)
    scale = partial(augment.random_scale_translate, scale=config.scale, translate=config.shift)
    transforms = (
        (augment.random_flip, config.flip),
        (augment.random_vertical_flip, config.vflip),
        (augment.random_apply(0.5, crop), config.crop_area != (1.0, 1.0)),
        (augment.random_apply(0.5, rotate), config.rotate),
        (scale, config.scale != (1.0, 1.0) or config.shift),
    )
    return [transform for transform, used in transforms if used]


def _photometric(config: AugmentOptions) -> list[augment.Transform]:
    transforms = (
        (augment.brightness_contrast, config.brightness_contrast),
        (augment.color_jitter, config.color_jitter),
        (augment.gaussian_noise, config.noise),
    )
    transforms = [partial(each, strength=strength) for each, strength in transforms if strength]
    if config.cutout_holes:
        transforms.append(partial(augment.cutout, count=config.cutout_holes, size=0.2))
    match config.photometric:
        case "random_order" if transforms:
            return [augment.random_order(*transforms)]
        case "one" if transforms:
            return [augment.one_of(*transforms)]
        case "some" if transforms:
            return [augment.some_of(-(-len(transforms) // 2), *transforms)]
    return transforms
