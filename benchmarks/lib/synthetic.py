"""Noise: digits as tensorflow-datasets prepares them, and images of the size of CIFAR-10."""

import io
import sys
from contextlib import redirect_stdout

import numpy as np
from PIL import Image

from jaxdet import configs
from jaxdet.config import task_hparams
from jaxdet.configs import cifar10
from jaxdet.data.sources import ArraySource
from jaxdet.training.experiment import Experiment

TRAIN, TEST, SIDE = 400, 100, 28


def prepare(folder, set_name):
    """Prepare a set under `folder`: TRAIN and TEST noise images of SIDE x SIDE pixels."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    found_by_files = tfds.core.registered.skip_registration()
    with found_by_files, redirect_stdout(sys.stderr):
        builder = _builder(tfds, set_name)(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()


def png(pixels):
    """Pixels [H, W] or [H, W, 3] uint8 as a PNG file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def classified(config, *, train, val):
    """The system of a configuration of cifar10, with so many random images and labels."""
    net, (_, *shape) = configs.network("cifar10", config)
    draw, classes = np.random.default_rng(0), tuple(map(str, range(10)))

    def drawn(count):
        return ArraySource(
            {
                "image": draw.integers(0, 256, (count, *shape), np.uint8),
                "label": draw.integers(0, len(classes), count).astype(np.int32),
                "id": np.arange(count, dtype=np.int32),
            }
        )

    splits = {"train": drawn(train), "val": drawn(val)}
    task = cifar10.task_of(config, net, classes)
    return Experiment(task=task, splits=splits, hparams=task_hparams(config), about={})


def _builder(tfds, set_name):
    """The class of the set."""

    class Noise(tfds.core.GeneratorBasedBuilder):
        """Noise with labels 0 to 9 in turn."""

        __module__ = "__main__"  # found in a package, it would need importlib_resources
        VERSION = tfds.core.Version("1.0.0")
        name = set_name

        def _info(self):
            image = tfds.features.Image(shape=(SIDE, SIDE, 1))
            label = tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

        def _generate_examples(self, count):
            draw = np.random.default_rng(0)
            for i in range(count):
                pixels = draw.integers(0, 256, (SIDE, SIDE), np.uint8)
                yield i, {"image": png(pixels), "label": i % 10}

    return Noise
