"""Noise as data sets in files and in memory; and runs that have not been trained."""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdet import configs, runs
from jaxdet.config import from_json
from jaxdet.configs import cifar10
from jaxdet.data import cifar10 as cifar10_data
from jaxdet.data.sources import ArraySource
from jaxdet.training import checkpoint, host_init
from jaxdet.training import state as training_state
from jaxdet.training.experiment import Experiment

TRAIN_IMAGES, TEST_IMAGES, SIDE = 400, 100, 28


def prepare_tfds(folder: Path, name: str) -> None:
    """Prepare a data set of tensorflow-datasets in `folder`: noise of SIDE x SIDE pixels."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    found_by_files = tfds.core.registered.skip_registration()
    with found_by_files, redirect_stdout(sys.stderr):
        builder = _noise_builder(tfds, name)(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()


def encode_image(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of an image file of the pixels [H, W] or [H, W, 3], uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_image_folders(root: Path, *, per_class: int = 4) -> None:
    """Write image files SPLIT/CLASS/NUMBER.png in the layout of CIFAR-10, with noise as images."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in cifar10_data.CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
                (folder / f"{i}.png").write_bytes(encode_image(pixels))


def write_identities(root: Path) -> None:
    """Write image files IDENTITY/NUMBER.png of ten identities, with noise as images."""
    for name in map(str, range(10)):
        write_images(root / name, count=8)


def write_yolo(root: Path) -> None:
    """Write a data set in YOLO's layout: noise, one box per image, two classes."""
    for split, count in (("train", 16), ("val", 8)):
        for path in write_images(root / "images" / split, count=count):
            label = root / "labels" / split / f"{path.stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{int(path.stem) % 2} .5 .5 .4 .3\n")
    names = "train: images/train\nval: images/val\nnames: [a, b]\n"
    (root / "data.yaml").write_text(names)


def write_images(folder: Path, *, count: int, height: int = 320, width: int = 416) -> list[Path]:
    """Write noise as image files NUMBER.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        path.write_bytes(encode_image(draw.integers(0, 256, (height, width, 3), np.uint8)))
    return paths


def write_run(folder: Path, system: str, fields: dict[str, Any]) -> None:
    """Write a run that has not been trained: its checkpoint has the initial variables."""
    config = from_json(configs.config(system), fields)
    experiment = configs.build(system, config)
    state = host_init.initialize(training_state.init_fn(experiment))
    lock = runs.create(folder, experiment)
    checkpoint.save(folder, 0, state)
    lock.release()


def cifar10_experiment(config: cifar10.Config, *, train: int, val: int) -> Experiment:
    """The experiment of a `cifar10` config, with `train` and `val` random images and labels."""
    _, (_, *shape) = configs.network("cifar10", config)
    draw, classes = np.random.default_rng(0), tuple(map(str, range(10)))

    def random_source(count):
        return ArraySource(
            {
                "image": draw.integers(0, 256, (count, *shape), np.uint8),
                "label": draw.integers(0, len(classes), count).astype(np.int32),
                "id": np.arange(count, dtype=np.int32),
            }
        )

    splits = {"train": random_source(train), "val": random_source(val)}
    return cifar10.from_splits(config, classes, splits)


def _noise_builder(tfds, set_name):
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
            return {
                "train": self._generate_examples(TRAIN_IMAGES),
                "test": self._generate_examples(TEST_IMAGES),
            }

        def _generate_examples(self, count):
            draw = np.random.default_rng(0)
            for i in range(count):
                pixels = draw.integers(0, 256, (SIDE, SIDE), np.uint8)
                yield i, {"image": encode_image(pixels), "label": i % 10}

    return Noise
