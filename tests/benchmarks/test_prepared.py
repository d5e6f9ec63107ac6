from pathlib import Path

import numpy as np
import pytest

from benchmarks import prepared
from jaxdet.data import detection, formats, images
from tests import datasets


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "yolo"
    datasets.write_yolo(root)
    return root


def prepare(source, out, *words):
    return prepared.main(["coco-like", "--source", str(source), "--out", str(out), *words])


def test_a_prepared_set_is_a_coco_set_without_faults(source, tmp_path, capsys):
    assert prepare(source, tmp_path / "a", "--images", "25") == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1:3] for line in table[2:]] == [[" train ", " 24 "], [" val ", " 1 "]]
    found = formats.read(tmp_path / "a")
    assert not found.notes and list(map(len, found.splits.values())) == [24, 1]
    for sample in found.splits["train"]:
        height, width = images.read_size(sample.image)
        assert sample.size == (height, width)
        assert (sample.boxes >= 0).all() and (sample.boxes <= [width, height] * 2).all()
    loaded, notes = detection.load(found.splits["train"], 32, 32, 9)
    assert len(loaded) == 24 and not detection.faults(notes)


def test_images_depend_on_seed_and_number_only(source, tmp_path):
    for name, words in {"a": ["2"], "b": ["5"], "c": ["2", "--seed", "1"]}.items():
        assert prepare(source, tmp_path / name, "--images", *words) == 0
    first = [(tmp_path / name / "train" / "000000000001.jpg").read_bytes() for name in "abc"]
    assert first[0] == first[1] != first[2]


def test_boxes_follow_the_objects():
    """An object that fills a block of the image fills the moved box."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:50, 30:70] = 255
    file = prepared.encode(prepared.Image.fromarray(pixels))
    sample = detection.annotated_image(file, [([30, 20, 70, 50], 0)], "block")
    counts = []
    for number in range(40):
        made = prepared.changed_image([sample], 0, number)
        decoded = images.read_float(made.jpeg).mean(-1)
        inside = np.zeros_like(decoded, bool)
        for x0, y0, x1, y1 in np.rint(made.boxes).astype(int):
            inside[y0:y1, x0:x1] = True
        counts.append(len(made.boxes))
        assert not inside.any() or decoded[inside].mean() > 0.6 > 0.1 > decoded[~inside].mean()
    assert counts.count(1) > 30 and counts.count(4) in range(1, 8)


def test_a_skewed_set_has_few_training_images_with_the_rare_class(source, tmp_path, capsys):
    words = ["skewed", "--source", str(source), "--out", str(tmp_path / "a"), "--keep", ".5"]
    before = formats.read(source)
    rare = before.classes[1]
    assert prepared.main([*words, "--rare", rare]) == 0
    assert f"| train | {rare} | 1 |" in capsys.readouterr().out
    found = formats.read(tmp_path / "a")
    assert found.classes == before.classes

    def having(dataset, split):
        return [1 in sample.labels for sample in dataset.splits[split]]

    assert having(before, "train") == [True, True, False]
    assert sorted(having(found, "train")) == [False, True]
    assert having(before, "val") == having(found, "val") == [True]
    for words_of, said in {
        ("--rare", "x"): "--rare must be one of",
        (): "--rare must be one of",
        ("--rare", rare, "--keep", "2"): "--keep must be from 0 to 1, got 2",
    }.items():
        assert prepared.main([*words[:3], "--out", str(tmp_path / "b"), *words_of]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--source", "absent"], "--source must be a folder with a detection data set, got absent"),
        (["--out", str(Path(__file__).parent)], "--out must be an empty or absent folder"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_two(source, tmp_path, words, message, capsys):
    assert prepare(source, tmp_path / "a", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
