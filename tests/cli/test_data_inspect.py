"""`jaxdet data inspect faces`; for other systems see their tests."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdet.configs import faces
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
    assert main(*words) == 0
    notes, _, table = capsys.readouterr().out.partition("\n\n")
    heads, *rows = [line.split() for line in table.splitlines() if "---" not in line]
    assert heads == ["label", "all", "unusable", "height", "width"]
    assert rows[:2] == [["s0", "0", "1"], ["s1", "9", "1", "12", "to", "12", "10", "to", "10"]]
    assert rows[2:] == [f"s{i} 10 0 12 to 12 10 to 10".split() for i in range(2, IDENTITIES)]
    assert notes.startswith("3 images or rows cannot be used:\n")
    for line in ("s0/3.pgm: not a readable image", "s1/3.pgm: not a", "s9: no files in it"):
        assert notes.count(f"  {data}/{line}") == 1
    assert main(*words, "--on-invalid", "error", "--json") == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert len(found["bad"]) == 3 and found["labels"][1]["all"] == 9
    assert said.err.startswith("jaxdet: error: 3 images or rows cannot be used")


def test_ten_unusable_images_are_printed_and_all_on_request(data, tmp_path, capsys):
    for number in range(12):
        (data / "s2" / f"bad{number}.pgm").write_bytes(b"no image")
    words = ["data", "inspect", "faces", "--root", data]
    assert main(*words, "--csv", tmp_path / "new" / "all.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "15 images or rows cannot be used:" and lines[12] == ""
    assert lines[11] == "  and 5 more, see --all or --csv FILE"
    rows = (tmp_path / "new" / "all.csv").read_text().splitlines()
    assert rows[0] == "kind,note" and len(rows) == 16
    assert all(row.startswith("unusable,") for row in rows[1:])
    assert main(*words, "--all") == 0
    assert capsys.readouterr().out.count("not a readable image") == 14


def test_a_folder_with_images_of_identities_is_needed(tmp_path, capsys):
    for words, message in (
        (["--root", tmp_path], "no class folder contains files"),
        ([], "--root must be a folder"),
    ):
        assert main("data", "inspect", "faces", *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def summarize(root):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(faces, "summarize", summarize)
    assert main("data", "inspect", "faces", "--root", "any") == 1
    assert capsys.readouterr().err == "jaxdet: error: Unable to allocate 9 GiB\n"
