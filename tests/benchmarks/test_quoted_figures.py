"""Figures that docs/benchmarks.md and docs/detection.md quote are those of the stored records."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.lib import units

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "benchmarks.md").read_text()
DETECTION = (ROOT / "docs" / "detection.md").read_text()
MODELS = {  # network in the text -> model in the records
    "digit locator, 64 pixels": "digits",
    "wide digit locator, 64 pixels": "digits_wide",
    "ResNet18, 64 pixels": "resnet18_64",
    "ResNet18, 224 pixels": "resnet18_224",
    "EfficientNet-Lite0, 224 pixels": "lite0_224",
    "Simple, 224 pixels": "simple_224",
    "Deeper, 112 pixels": "deeper_112",
    "detector, 416 x 320 pixels, three stages frozen": "detect",
    "CIFAR-10 tutorial": "cifar10",
    "digit locator": "digits",
    "Simple": "objects",
    "EfficientNet-Lite0": "lite0",
    "ResNet18": "resnet18",
    "ResNet50": "resnet50",
    "VGG-like": "vgg",
}
LAYERS = {
    "3 x 3 convolution": "conv3",
    "3 x 3, stride 2": "conv3_stride2",
    "1 x 1 convolution": "conv1",
    "depthwise 3 x 3": "depthwise3",
    "batch norm": "norm",
    "ReLU": "relu",
    "max pool 2 x 2": "max_pool",
    "average pool 2 x 2": "average_pool",
}
PARTS = {  # other parts: (record, row, field, unit), in the order of the figures in the text
    "sliding a 14-pixel network": [
        ("sliding_windows", {"size": 720, "library": "jax", "form": form}, "seconds", "s")
        for form in ("convolutional", "loop")
    ],
    "target encoding": [
        ("target_encoding", {"implementation": name}, "median", "s")
        for name in ("encode_targets", "loops")
    ],
    "task-aligned assignment": [
        ("assignment", {"implementation": name}, "median", "s")
        for name in ("jaxdet", "PyTorch", "loops")
    ],
    "NMS, 10,000": [
        ("suppression", {"implementation": name}, "median", "s") for name in ("jaxdet", "NumPy")
    ],
    "similarity of": [
        ("similarity", {"implementation": name}, "median", "s")
        for name in ("jaxdet", "NumPy", "NumPy, product")
    ],
    "a step of 8 learning rates": [
        ("rates", {"model": "tutorial"}, name, "s") for name in ("vmapped_s", "sequential_s")
    ],
    "reading MNIST": [("input", {"source": "MNIST, idx", "operation": "read"}, "median", "s")],
    "batch, flip, crop": [
        ("input", {"operation": "gather, flip, crop, cutout"}, "median", "s"),
    ],
    "start of `jaxdet train digits`": [
        (
            "startup",
            {"command": "jaxdet train digits", "stage": "from start to first step"},
            name,
            "s",
        )
        for name in ("cold_s", "warm_s")
    ],
}


@cache
def rows(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def find(name, **fields):
    """The row of a record with these values."""
    (row,) = [row for row in rows(name) if fields.items() <= row.items()]
    return row


def table(title):
    """Cells of the rows of the first table after a title, without the header."""
    start = TEXT.index(f"**{title}**")
    lines = re.search(r"(?:\|.*\n)+", TEXT[start:])[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quantity(value, unit):
    return units.format_quantity(value, unit)


def test_training_steps_are_those_of_the_record():
    found = table("Training steps")
    assert len(found) > 4
    for name, batch, own, torch, ratio, memory in found:
        if MODELS[name] == "cifar10":
            times = [find("tutorial", implementation=each) for each in ("jaxdet", "PyTorch")]
            times = [row["step_s"] for row in times]
            expected = [*times, times[0] / times[1], None]
        else:
            same = {"model": MODELS[name], "batch": int(batch)}
            row = find("train_step", implementation="jit", **same)
            peer = find("train_step", implementation="torch", **same)
            expected = [row["median"], peer["median"], row["ratio"], row["memory_ratio"]]
        assert [own, torch] == [quantity(value, "s") for value in expected[:2]], name
        ratios = [value and units.format_number(value) or "" for value in expected[2:]]
        assert [ratio, memory] == ratios, name


def test_layers_are_those_of_the_record():
    cells = [cell for line in table("Layers") for cell in (line[:3], line[4:])]
    assert len(cells) == len(LAYERS)
    for name, *ratios in cells:
        kinds = ("forward", "forward + backward")
        found = [find("layers", layer=LAYERS[name], direction=kind)["ratio"] for kind in kinds]
        assert ratios == [*map(units.format_number, found)], name


def test_operations_are_those_of_the_record():
    found = table("Operations")
    assert len(found) > 4
    for name, size, parameters, *counts in found:
        row = find("flops", model=MODELS[name])
        assert size == " x ".join(map(str, row["input"][1:])), name
        assert parameters == f"{row['parameters']:,}", name
        expected = [row[key] for key in ("multiply_adds", "forward", "training")]
        assert counts == [quantity(value, "").strip() for value in expected], name


@pytest.mark.parametrize("name", PARTS)
def test_other_parts_are_those_of_the_record(name):
    (line,) = [row for row in table("Other parts") if row[0].startswith(name)]
    figures = re.findall(r"\d[\d.,]* (?:s|ms|µs)\b", " ".join(line[1:]))
    expected = [
        quantity(find(record, **row)[field], unit) for record, row, field, unit in PARTS[name]
    ]
    assert figures == expected


def percent(row, field):
    return str(round(100 * float(row[field].split()[0])))


def test_label_errors_are_those_of_the_record():
    kinds = ("missing", "misplaced", "mislabeled", "duplicate")
    methods = ("jaxdet", "cleanlab, threshold 0.5", "cleanlab, threshold 0.95")
    known = {(row["kind"], row["method"]): row for row in rows("label_errors")}
    part = DETECTION.split("## Auditing the labels")[1].split("\n## ")[0]
    lines = part[part.index("| | missing |") :].splitlines()[2 : 2 + len(methods)]
    for line, method in zip(lines, methods, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        found = [known.get((kind, method)) for kind in kinds]
        assert cells == [percent(row, "precision_n") if row else "no score" for row in found]
    last = [percent(known[kind, "jaxdet"], "recall_2n") for kind in kinds]
    assert f"contain {last[0]}, {last[1]}, {last[2]} and {last[3]}% of the injected" in part
    count = known["missing", "jaxdet"]["injected"]
    assert f"({count}) of the" in part and f"The first {2 * count} boxes" in part
    spreads = [float(row["precision_n"].split("(")[1][:-1]) for row in known.values()]
    assert f"deviations of at most {round(100 * max(spreads))}" in part.replace("\n", " ")
