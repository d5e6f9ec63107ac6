"""Galleries, tables of labels and lists of pairs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from tests.datasets import encode_image, write_tree

IMAGE = encode_image()
FILES = [Path("u") / f"{i:02d}.png" for i in range(3)]
NAMES = ("ann", "bob")


def refused(message, function, *args):
    with pytest.raises(InputError, match=message) as error:
        function(*args)
    assert "\n" not in str(error.value)


def written(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


# Folders


def test_identities_of_a_gallery_are_folders_in_alphabetical_order(tmp_path):
    write_tree(tmp_path / "known", {"bob/1.png": IMAGE, "ann/2.png": IMAGE, "ann/1.png": IMAGE})
    write_tree(tmp_path / "known", {"README.md": b"text", ".hidden/1.png": IMAGE})
    found = verification_protocol.read_gallery(tmp_path / "known")
    assert found.identities == NAMES
    assert [f"{path.parent.name}/{path.name}" for path in found.paths] == [
        *("ann/1.png", "ann/2.png", "bob/1.png")
    ]
    assert found.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ann/1.png": IMAGE, "bob": None}, "bob: no image files"),
        ({"ann/1.png": IMAGE, "bob.png": IMAGE}, "bob.png: must be in the folder of an identity"),
        ({"README.md": b""}, "no folders of identities"),
        ({"n000000/1.png": IMAGE}, "n000000: this name is reserved for unknown identities"),
    ],
)
def test_galleries_of_other_layouts_are_refused(tmp_path, files, message):
    write_tree(tmp_path / "known", files)
    refused(message, verification_protocol.read_gallery, tmp_path / "known")


def test_probes_are_in_alphabetical_order(tmp_path):
    write_tree(tmp_path / "u", {"b.png": IMAGE, "a.png": IMAGE, "10.jpg": IMAGE, "x.txt": b""})
    assert [path.name for path in verification_protocol.list_probes(tmp_path / "u")] == [
        "10.jpg",
        "a.png",
        "b.png",
    ]
    write_tree(tmp_path / "u", {"deep/c.png": IMAGE})
    refused(
        "deep/c.png: probes must be directly in", verification_protocol.list_probes, tmp_path / "u"
    )
    refused("no such folder", verification_protocol.list_probes, tmp_path / "none")


# Tables of labels


@pytest.mark.parametrize(
    "text",
    [
        "bob\nn000000\nann\n",
        "label\nbob\nn000000\nann",
        "Id,Label\n0,bob\n1,n000000\n2,ann\n",
        "7,bob\n8,n000000\n9,ann\n",
        "2,ann\n0,bob\n1,n000000\n",
        "02.png,ann\n01.png,n000000\n00.png,bob\n",
        "file,label\n00.png,bob\nunknown/01.png,n000000\n02.png,ann\n",
        "label,index\r\nbob,0\r\nn000000,1\r\n\r\nann,2\r\n",
        "\ufefflabel\nbob\nn000000\nann\n",
        "id, label\nx, bob\ny, n000000\nz, ann\n",
    ],
)
def test_the_truth_has_a_label_per_image(tmp_path, text):
    found = verification_protocol.read_truth(written(tmp_path, text), NAMES, FILES)
    np.testing.assert_array_equal(found, [1, -1, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\nbob\neve\nann\n", "row 3: label must be .*, got 'eve'"),
        ("bob\nann\n", "row 2: must have 3 rows, one per image, got 2"),
        ("", "row 0: must have 3 rows, one per image, got 0"),
        ("0,bob\n2,ann\n2,ann\n", "row 3: 02.png is in row 2 already"),
        ("0,bob\n2,ann\n", "row for each image, got none for 01.png .1 without"),
        ("1,bob\n2,ann\n3,ann\n", "row 3: image must be one of the 3 probes, got 3"),
        (
            "00.png,bob\n01.jpg,ann\n02.png,ann\n",
            "row 2: image must be one of the 3 probes, got 01.jpg",
        ),
        ("a,b,bob\n", "row 1: .* got 3 columns"),
        ("index,label\n0,bob\nann\n2,ann\n", "row 3: .* got 1 columns"),
        ("label\n" + "b\0b\n" * 3, "row 2: label must be .*, got 'b.x00b'|not a table"),
    ],
)
def test_truth_that_does_not_match_the_images_is_refused(tmp_path, text, message):
    refused(message, verification_protocol.read_truth, written(tmp_path, text), NAMES, FILES)


def test_a_file_that_is_not_a_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\x00\x01")
    refused("t.csv: cannot be read", verification_protocol.read_table, tmp_path / "t.csv")
    refused(
        "none.csv: cannot be read: No such file",
        verification_protocol.read_table,
        tmp_path / "none.csv",
    )


def matched(tmp_path, names, keys):
    """The names of the files that the rows with these keys are about."""
    files = sorted(tmp_path / name for name in names)
    table = verification_protocol.read_table(written(tmp_path, "".join(f"{k},x\n" for k in keys)))
    return [files[place].name for place in verification_protocol.match_rows(table, files)]


NUMBERED = [f"{i}.png" for i in range(12)]  # 10.png and 11.png are before 2.png by name


@pytest.mark.parametrize(
    ("names", "keys", "found"),
    [
        (NUMBERED, range(12), NUMBERED),
        (NUMBERED, range(11, -1, -1), NUMBERED[::-1]),
        (["07.png", "8.png", "09.png"], ["9", "008", "7"], ["09.png", "8.png", "07.png"]),
        (["100.png", "101.png"], [1, 0], ["101.png", "100.png"]),
        (["a1.png", "a2.png"], [6, 5], ["a2.png", "a1.png"]),
        (["a1.png", "a2.jpg"], ["a2", "a1"], ["a2.jpg", "a1.png"]),
        (["a1.png", "a2.png"], ["unknown/a2.png", "x\\a1.png"], ["a2.png", "a1.png"]),
        (["a1.png", "a2.png"], ["x", "y"], ["a1.png", "a2.png"]),
    ],
)
def test_a_key_is_a_name_or_a_number_in_any_order(tmp_path, names, keys, found):
    assert matched(tmp_path, names, keys) == found


@pytest.mark.parametrize("keys", [range(20, 32), "abcdefghijkl"])
@pytest.mark.parametrize("prefix", ["", "img"])
def test_an_ambiguous_order_is_refused(tmp_path, prefix, keys):
    names = [prefix + name for name in NUMBERED]
    refused(f"{prefix}10.png is before {prefix}2.png by name", matched, tmp_path, names, keys)
    files = sorted(map(Path, names))
    table = verification_protocol.read_table(written(tmp_path, "ann\n" * 12))
    refused("ambiguous", verification_protocol.match_rows, table, files)


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (NUMBERED, ["0", "1", "10", "11", *"23456789"]),
        (["7.png", "08.png"], ["8", "7"]),
        (["a.png", "b.png"], ["0", "1"]),
        (["a10.png", "a2.png"], ["a10.png", "a2.png"]),
        (["1.png", "a.png"], ["1.png", "a.png"]),
        (["01.png", "1.png"], ["01.png", "1.png"]),
    ],
)
def test_a_submission_without_a_sample_has_clear_keys(tmp_path, names, keys):
    files = sorted(map(Path, names))
    labels = [file.stem for file in files]
    text = verification_protocol.submission_csv(labels, files)
    rows = [f"{key},{label}" for key, label in zip(keys, labels, strict=True)]
    assert text.splitlines() == ["index,label", *rows]
    table = verification_protocol.read_table(written(tmp_path, text))
    assert verification_protocol.match_rows(table, files) == [*range(len(files))]


def test_a_submission_has_the_header_and_rows_of_its_sample(tmp_path):
    files = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    csv = verification_protocol.submission_csv
    assert csv([7, 0], files, named=True) == "id,label\nx.jpg,7\ny.jpg,0\n"
    for heading in ("Id,Label\n", "", "label,id\n"):
        rows = "q,8\np,7\n" if heading.startswith("label") else "8,q\n7,p\n"
        sample = verification_protocol.read_table(written(tmp_path, heading + rows))
        expected = heading + rows.replace("q", "b").replace("p", "a")
        assert csv(["a", "b"], files, sample) == expected


@given(
    st.lists(st.sampled_from([*NAMES, verification_protocol.UNKNOWN_LABEL]), min_size=1, max_size=9)
)
def test_a_submission_is_read_as_written(tmp_path_factory, labels):
    files = [Path(f"{i}.png") for i in range(len(labels))]
    text = verification_protocol.submission_csv(labels, files)
    path = written(tmp_path_factory.mktemp("t"), text)
    found = verification_protocol.read_truth(path, NAMES, files)
    assert [(*NAMES, verification_protocol.UNKNOWN_LABEL)[i] for i in found] == labels


# Pairs


@pytest.fixture
def faces(tmp_path):
    names = ["x/ann/ann_0001.png", "x/ann/ann_0002.jpg", "y/bob_b/bob_b_0012.png", "ann_0001.png"]
    write_tree(tmp_path / "lfw", dict.fromkeys(names, IMAGE))
    return tmp_path / "lfw"


def listed(faces, text):
    path = faces.parent / "pairs.txt"
    path.write_text(text)
    return verification_protocol.read_pairs(path, faces)


def test_pairs_are_of_one_identity_or_of_two(faces):
    found = listed(faces, "1\t1\nann\t1\t2\nann\t2\tbob_b\t12\n")
    first, second, other = (
        faces / name
        for name in ("x/ann/ann_0001.png", "x/ann/ann_0002.jpg", "y/bob_b/bob_b_0012.png")
    )
    assert found == (1, [(first, second, True, 0), (second, other, False, 1)], ())
    assert listed(faces, "1\nann 1 2\nann 2 bob_b 12\n").folds is None


def test_missing_images_are_noted(faces):
    found = listed(faces, "2 1\nann 1 2\nann 3 eve 12\nann 1 2\nann 1 eve 7\n")
    assert [(pair.same, pair.index) for pair in found.pairs] == [(True, 0), (True, 2)]
    assert found.missing == (
        f"{faces.parent / 'pairs.txt'} row 3: no image ann/ann_0003 below {faces}",
        f"{faces.parent / 'pairs.txt'} row 5: no image eve/eve_0007 below {faces}",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: must be the number of folds"),
        ("ann 1 2\n", "row 1: must be the number of folds"),
        ("1 1\nann 1 2\n", "must have 2 pairs according to its first line, got 1"),
        ("1 1\nann 1 2\nann 1\n", "row 3: must be NAME 1 2 .* got 'ann 1'"),
        ("1 1\nann 1 2\nann one ann 2\n", "row 3: must be .* got 'ann one ann 2'"),
    ],
)
def test_invalid_lists_of_pairs_are_refused(faces, text, message):
    refused(message, listed, faces, text)


def test_ambiguous_images_are_refused(faces):
    write_tree(faces, {"z/ann/ann_0001.bmp": IMAGE})
    refused(
        "row 2: image must be one file, got .*ann_0001.* and .*ann_0001",
        listed,
        faces,
        "1 1\nann 1 2\nann 1 2\n",
    )
