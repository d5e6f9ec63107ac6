"""Write the tiny data sets of the golden runs, and weights for the backbone of `detect`.

    python make_data.py DATA WEIGHTS
    python make_data.py --weights WEIGHTS

DATA gets the folders cifar10, detect, faces and objects; WEIGHTS is the .safetensors file to write.
Images are plain colors with coarse noise, so that the files are small.  The weights repeat one
short row of numbers, so that checkpoints compress frozen weights to almost nothing.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW, GREY = COLOURS = np.array(
    ((230, 60, 40), (40, 200, 60), (50, 60, 220), (220, 200, 40), (120, 120, 120))
)
PERIOD = 1021  # numbers after which the weights begin again


def noisy(random, height, width, colour, spread=24, cell=8):
    """A color with noise in squares of `cell` pixels, [height, width, 3] uint8."""
    coarse = random.integers(-spread, spread + 1, (-(-height // cell), -(-width // cell), 3))
    fine = coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return np.uint8(np.clip(fine + colour, 0, 255))


def save(pixels, path):
    """Write a PNG file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def cifar10(root):
    """SPLIT/CLASS/FILE: 16 images per class for training, 6 for the test."""
    random = np.random.default_rng(1)
    for part, count in (("train", 16), ("test", 6)):
        for name, colour in zip(("cat", "dog", "owl"), COLOURS, strict=False):
            for i in range(count):
                save(noisy(random, 32, 32, colour, 110), root / part / name / f"{i:02d}.png")


def faces(root):
    """IDENTITY/FILE: 10 images of each of 5 identities."""
    random = np.random.default_rng(2)
    for name, colour in zip(("ann", "bob", "cid", "dot", "eve"), COLOURS, strict=True):
        for i in range(10):
            save(noisy(random, 24, 20, colour, 70, 4), root / name / f"{name}_{i + 1:04d}.png")


def box(random, height, width):
    """A box (x0, y0, x1, y1) of about half of each side."""
    tall, wide = (int(random.integers(side // 3, 2 * side // 3)) for side in (height, width))
    y0, x0 = int(random.integers(1, height - tall)), int(random.integers(1, width - wide))
    return x0, y0, x0 + wide, y0 + tall


def objects(root):
    """images/LABEL/FILE, annotations/LABEL.csv: 12 images per label, a row without an image."""
    random = np.random.default_rng(3)
    (root / "annotations").mkdir(parents=True)
    for name, colour in zip(("cup", "key", "pen"), COLOURS, strict=False):
        rows = []
        for i in range(12):
            height, width = (int(side) for side in random.integers(40, 80, 2))
            pixels = noisy(random, height, width, GREY)
            x0, y0, x1, y1 = box(random, height, width)
            pixels[y0:y1, x0:x1] = colour
            save(pixels, root / "images" / name / f"{i}.png")
            rows.append(f"{i}.png,{x0},{y0},{x1},{y1},{name}\n")
        if name == "pen":
            rows.append("gone.png,1,2,30,40,pen\n")
        (root / "annotations" / f"{name}.csv").write_text("".join(rows))


def detect(root):
    """YOLO, two classes: 24 images of 0 to 3 boxes for training and validation, 8 for the test."""
    random = np.random.default_rng(4)
    for part, count in (("train", 24), ("test", 8)):
        (root / "labels" / part).mkdir(parents=True)
        for i in range(count):
            height, width = int(random.integers(48, 70)), int(random.integers(60, 100))
            pixels, lines = noisy(random, height, width, GREY), []
            for k in range(i % 4):
                x0, y0, x1, y1 = box(random, height, width)
                label = (i + k) % 2
                pixels[y0:y1, x0:x1] = COLOURS[label]
                shares = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
                sides = (x1 - x0) / width, (y1 - y0) / height
                lines.append(" ".join([str(label), *map("{:.6f}".format, shares + sides)]) + "\n")
            save(pixels, root / "images" / part / f"{i}.png")
            if lines:
                (root / "labels" / part / f"{i}.txt").write_text("".join(lines))
    names = "names:\n  0: cell\n  1: dot\n"
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\ntest: images/test\n{names}")


def weights(path):
    """Weights of ResNet18 by the names that torchvision has, without its last layer."""
    from safetensors.numpy import save_file

    from jaxdet.models import resnet

    net = resnet.ResNet18(classes=0)
    blank = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    shapes = jax.eval_shape(partial(net.init, jax.random.key(0)), blank)
    row, arrays = np.random.default_rng(5).permutation(PERIOD) - PERIOD // 2, {}
    for number, (where, leaf) in enumerate(jax.tree.leaves_with_path(shapes)):
        name = jax.tree_util.keystr(where, simple=True, separator="/")
        if leaf.ndim == 4:
            spread = np.sqrt(12 * 2 / np.prod(leaf.shape[:3])) / PERIOD  # variance: 2 / fan
            array = np.resize(np.roll(row, number), leaf.shape) * 2.0 ** np.round(np.log2(spread))
            array = array.transpose(3, 2, 0, 1)
        else:
            array = np.full(leaf.shape, name.endswith(("scale", "var")))
        arrays[resnet.torch_name(name)] = np.ascontiguousarray(array, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)


if __name__ == "__main__":
    data, file = sys.argv[1], Path(sys.argv[2])
    for make in (cifar10, detect, faces, objects) if data != "--weights" else ():
        make(Path(data) / make.__name__)
    weights(file)
