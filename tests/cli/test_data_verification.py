"""Folders for verification made of folders of people."""

import csv
from collections import Counter
from dataclasses import replace

import pytest

from jaxdet.cli import data_verification
from jaxdet.cli.verify_options import Make
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from tests.datasets import encode_image, write_tree

PEOPLE, EACH = 10, 4


@pytest.fixture
def chosen(tmp_path):
    """Ten people with four images each, all different."""
    names = [f"n{p}/{i}.png" for p in range(PEOPLE) for i in range(EACH)]
    write_tree(tmp_path / "faces", {name: encode_image(i + 1) for i, name in enumerate(names)})
    return Make(root=str(tmp_path / "faces"), out=tmp_path / "made", known=4, strangers=3)


def people(folder):
    return {path.name for path in folder.iterdir()}


def test_every_image_is_somewhere_and_people_are_apart(chosen, tmp_path, capsys):
    assert data_verification.run(chosen) == 0
    assert capsys.readouterr().out.split()[:6] == ["learnt", "3", "known", "4", "strangers", "3"]
    source = {path.read_bytes(): path.parent.name for path in tmp_path.glob("faces/*/*")}
    made = Counter(path.read_bytes() for path in chosen.out.rglob("*.png"))
    assert made == Counter(list(source))
    known, learnt = people(chosen.out / "known"), people(chosen.out / "classification")
    assert not known & learnt and (len(known), len(learnt)) == (4, 3)
    seen = {}
    for part in ("dev", "test"):
        files = verification_protocol.list_probes(chosen.out / f"unknown_{part}")
        rows = list(csv.DictReader((chosen.out / f"verification_{part}.csv").open()))
        true = verification_protocol.read_truth(
            chosen.out / f"verification_{part}.csv", tuple(sorted(known)), files
        )
        assert set(true) >= {-1} and max(true) >= 0
        who = [source[file.read_bytes()] for file in files]
        for name, row in zip(who, rows, strict=True):
            assert row["label"] == (name if name in known else verification_protocol.UNKNOWN_LABEL)
        seen[part] = set(who)
        assert not seen[part] & learnt
    assert not seen["dev"] & seen["test"]
    sample = verification_protocol.read_table(chosen.out / "verification_sample_submission.csv")
    assert not verification_protocol.mismatches(
        sample, verification_protocol.list_probes(chosen.out / "unknown_test")
    )


def test_a_seed_gives_the_same_folders(chosen, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        data_verification.run(replace(chosen, out=tmp_path / name, seed=seed))
    a, b, c = (people(tmp_path / name / "known") for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"root": ""}, "--root: the folder"),
        ({"known": 6}, "10 people; --known 6 and --strangers 3 want 11"),
        ({"strangers": 1}, "--strangers 1"),
        ({"each": 4}, "n0: 4 images, more than 4 are wanted"),
        ({"dev": 1.0}, "--dev 1.0"),
    ],
)
def test_what_cannot_be_made_is_refused(chosen, changes, said):
    with pytest.raises(InputError, match=said) as error:
        data_verification.run(replace(chosen, **changes))
    assert "\n" not in str(error.value)
    assert not chosen.out.exists()


def test_a_folder_that_holds_something_is_not_written_to(chosen):
    write_tree(chosen.out, {"mine.txt": b""})
    with pytest.raises(InputError, match="is not empty"):
        data_verification.run(chosen)
