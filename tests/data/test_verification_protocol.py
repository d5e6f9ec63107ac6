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
        "1,bob\n2,n000000\n3,ann\n",
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
        ("0,bob\n2,ann\n1,ann\n", "row 2: must be 1 or 01.png, got 2 .2 such"),
        ("00.png,bob\n02.png,ann\n01.png,ann\n", "row 2: must be 1 or 01.png, got 02.png"),
        ("a,b,bob\n", "row 1: 3 columns"),
        ("index,label\n0,bob\nann\n2,ann\n", "row 3: 1 columns"),
        ("label\n" + "b\0b\n" * 3, "row 2: label must be .*, got 'b.x00b'|not a table"),
    ],
)
def test_truth_that_does_not_match_the_images_is_refused(tmp_path, text, message):
    refused(message, verification_protocol.read_truth, written(tmp_path, text), NAMES, FILES)


def test_a_file_that_is_not_a_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\x00\x01")
    refused("t.csv: not readable", verification_protocol.read_table, tmp_path / "t.csv")
    refused(
        "none.csv: cannot be read: No such file",
        verification_protocol.read_table,
        tmp_path / "none.csv",
    )


def test_keys_may_be_the_stems_of_the_files(tmp_path):
    files = [Path(name) for name in ("0.png", "1.png", "10.png", "2.png")]
    table = verification_protocol.read_table(written(tmp_path, "0,ann\n1,ann\n10,ann\n2,bob\n"))
    assert not verification_protocol.mismatches(table, files)


def test_each_mismatch_is_a_line(tmp_path):
    table = verification_protocol.read_table(written(tmp_path, "index,label\n0,a\n2,a\n1,a\n3,a\n"))
    assert verification_protocol.mismatches(table, FILES) == [
        "row 3: must be 1 or 01.png, got 2",
        "row 4: must be 2 or 02.png, got 1",
        "row 5: must have 3 rows, one per image, got 4",
    ]


def test_a_submission_has_the_header_and_keys_of_its_sample(tmp_path):
    assert verification_protocol.submission_csv(["a", "b"]) == "index,label\n0,a\n1,b\n"
    files = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    assert (
        verification_protocol.submission_csv([7, 0], files=files) == "id,label\nx.jpg,7\ny.jpg,0\n"
    )
    for heading in ("Id,Label\n", "", "label,id\n"):
        rows = "x,7\ny,8\n" if heading.startswith("label") else "7,x\n8,y\n"
        sample = verification_protocol.read_table(written(tmp_path, heading + rows))
        expected = heading + rows.replace("x", "a").replace("y", "b")
        assert verification_protocol.submission_csv(["a", "b"], sample) == expected


@given(
    st.lists(st.sampled_from([*NAMES, verification_protocol.UNKNOWN_LABEL]), min_size=1, max_size=9)
)
def test_a_submission_is_read_as_written(tmp_path_factory, labels):
    path = written(tmp_path_factory.mktemp("t"), verification_protocol.submission_csv(labels))
    files = [Path(f"{i}.png") for i in range(len(labels))]
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
        ("1 1\nann 1 2\n", "1 pairs, 2 by its first line"),
        ("1 1\nann 1 2\nann 1\n", "row 3: must be NAME 1 2 .* got 'ann 1'"),
        ("1 1\nann 1 2\nann one ann 2\n", "row 3: must be .* got 'ann one ann 2'"),
    ],
)
def test_invalid_lists_of_pairs_are_refused(faces, text, message):
    refused(message, listed, faces, text)


def test_ambiguous_images_are_refused(faces):
    write_tree(faces, {"z/ann/ann_0001.bmp": IMAGE})
    refused(
        "row 2: ambiguous, .*ann_0001.* or .*ann_0001", listed, faces, "1 1\nann 1 2\nann 1 2\n"
    )
