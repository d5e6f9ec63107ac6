"""`jaxdet data verification`: the folders of a verification protocol."""

import csv
from collections import Counter
from dataclasses import replace

import pytest

from jaxdet.cli import data_verification
from jaxdet.cli.verify_options import VerificationFolders
from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from tests.cli.test_main import parse_aligned
from tests.datasets import encode_image, write_tree

IDENTITIES, IMAGES = 10, 4


@pytest.fixture
def options(tmp_path):
    """Ten identities with four images each, all different."""
    names = [f"n{k}/{i}.png" for k in range(IDENTITIES) for i in range(IMAGES)]
    write_tree(tmp_path / "faces", {name: encode_image(i + 1) for i, name in enumerate(names)})
    return VerificationFolders(
        root=str(tmp_path / "faces"), out=tmp_path / "out", known=4, unknown_identities=3
    )


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_every_image_is_used_once_and_parts_share_no_identity(options, tmp_path, capsys):
    assert data_verification.run(options) == 0
    (rows,) = parse_aligned(capsys.readouterr().out)
    counts = {row["written"]: int(row["count"]) for row in rows[:3]}
    identities = {"training_identities": 3, "known_identities": 4, "unknown_identities": 3}
    assert counts == identities
    source = {path.read_bytes(): path.parent.name for path in tmp_path.glob("faces/*/*")}
    written = Counter(path.read_bytes() for path in options.out.rglob("*.png"))
    assert written == Counter(list(source))
    known, training = names_in(options.out / "known"), names_in(options.out / "classification")
    assert not known & training and (len(known), len(training)) == (4, 3)
    seen = {}
    for part in ("dev", "test"):
        files = verification_protocol.list_probes(options.out / f"unknown_{part}")
        table = options.out / f"verification_{part}.csv"
        rows = list(csv.DictReader(table.open()))
        true = verification_protocol.read_truth(table, tuple(sorted(known)), files)
        assert set(true) >= {-1} and max(true) >= 0
        names = [source[file.read_bytes()] for file in files]
        for name, row in zip(names, rows, strict=True):
            assert row["label"] == (name if name in known else verification_protocol.UNKNOWN_LABEL)
        seen[part] = set(names)
        assert not seen[part] & training
    assert not seen["dev"] & seen["test"]
    sample = verification_protocol.read_table(options.out / "verification_sample_submission.csv")
    probes = verification_protocol.list_probes(options.out / "unknown_test")
    assert verification_protocol.match_rows(sample, probes) == [*range(len(probes))]


def test_a_seed_gives_the_same_folders(options, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        data_verification.run(replace(options, out=tmp_path / name, seed=seed))
    a, b, c = (names_in(tmp_path / name / "known") for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": ""}, "--root must be given"),
        ({"known": 6}, "at least 11 identities for --known 6, .*, got 10"),
        ({"unknown_identities": 1}, "--unknown-identities must be at least 2, got 1"),
        ({"gallery_images": 4}, "identity n0 must have more images than --gallery-images 4, got 4"),
        ({"dev": 1.0}, "--dev must be above 0 and below 1, got 1"),
    ],
)
def test_unusable_options_are_refused(options, changes, message):
    with pytest.raises(InputError, match=message) as error:
        data_verification.run(replace(options, **changes))
    assert "\n" not in str(error.value)
    assert not options.out.exists()


def test_a_folder_that_holds_something_is_not_written_to(options):
    write_tree(options.out, {"mine.txt": b""})
    with pytest.raises(InputError, match="is not empty"):
        data_verification.run(options)
