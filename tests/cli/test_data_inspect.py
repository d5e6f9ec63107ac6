"""`jaxdet data inspect faces`; for other systems see their tests."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_main import main

IDENTITIES, EACH = 5, 10


@pytest.fixture
def data(tmp_path):
    """A folder of five identities with ten gray images each, and images that cannot be used.

    None of s0 can be read, one of s1 cannot, and s9 is empty.
    """
    data = tmp_path / "data"
    random = np.random.default_rng(0)
    for identity in range(IDENTITIES):
        folder = data / f"s{identity}"
        folder.mkdir(parents=True)
        for number in range(EACH if identity else 0):
            pixels = random.integers(256, size=(12, 10)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.pgm")
    for name in ("s0", "s1"):
        (data / name / "3.pgm").write_bytes(b"no image")
    (data / "s9").mkdir()
    return data


def test_images_are_counted_and_unreadable_ones_named(data, capsys):
    words = ["data", "inspect", "faces", "--root", data]
    assert main(*words) == 2
    text, error = capsys.readouterr()
    table, _, notes = text.partition("\n\n")
    heads, *rows = [line.split() for line in table.splitlines() if "---" not in line]
    assert heads == ["label", "all", "unusable", "height", "width"]
    assert rows[:2] == [["s0", "0", "1"], ["s1", "9", "1", "12", "to", "12", "10", "to", "10"]]
    assert rows[2:] == [f"s{i} 10 0 12 to 12 10 to 10".split() for i in range(2, IDENTITIES)]
    for line in ("s0/3.pgm: not a readable image", "s1/3.pgm: not a", "s9: no files in it"):
        assert notes.count(f"{data}/{line}") == 1
    assert error.startswith("jaxdet: error: 3 images or rows cannot be used")
    assert main(*words, "--on-invalid", "skip", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["bad"]) == 3 and found["labels"][1]["all"] == 9


def test_a_folder_with_images_of_identities_is_needed(tmp_path, capsys):
    for words, message in (
        (["--root", tmp_path], "no folder of a class"),
        ([], "--root must be a folder"),
    ):
        assert main("data", "inspect", "faces", *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
