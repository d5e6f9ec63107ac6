"""Folders of identities, tables of truth and files of pairs, made here."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.data import verification_protocol
from jaxdet.errors import InputError
from tests.data.test_image_folder import drawn, on_disk

IMAGE = drawn()
FILES = [Path("u") / f"{i:02d}.png" for i in range(3)]
NAMES = ("ann", "bob")


def refused(said, function, *args):
    with pytest.raises(InputError, match=said) as error:
        function(*args)
    assert "\n" not in str(error.value)


def written(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


# folders


def test_known_identities_are_folders_by_their_names(tmp_path):
    on_disk(tmp_path / "known", {"bob/1.png": IMAGE, "ann/2.png": IMAGE, "ann/1.png": IMAGE})
    on_disk(tmp_path / "known", {"README.md": b"text", ".hidden/1.png": IMAGE})
    found = verification_protocol.read_gallery(tmp_path / "known")
    assert found.names == NAMES
    assert [f"{path.parent.name}/{path.name}" for path in found.paths] == [
        *("ann/1.png", "ann/2.png", "bob/1.png")
    ]
    assert found.owner.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ann/1.png": IMAGE, "bob": None}, "bob: no image files"),
        ({"ann/1.png": IMAGE, "bob.png": IMAGE}, "bob.png: no folder of an identity"),
        ({"README.md": b""}, "no folders of identities"),
        ({"n000000/1.png": IMAGE}, "n000000: this name is for who is no known identity"),
    ],
)
def test_other_layouts_of_known_identities_are_refused(tmp_path, files, said):
    on_disk(tmp_path / "known", files)
    refused(said, verification_protocol.read_gallery, tmp_path / "known")


def test_unknown_images_are_in_the_order_of_their_names(tmp_path):
    on_disk(tmp_path / "u", {"b.png": IMAGE, "a.png": IMAGE, "10.jpg": IMAGE, "x.txt": b""})
    assert [path.name for path in verification_protocol.list_probes(tmp_path / "u")] == [
        "10.jpg",
        "a.png",
        "b.png",
    ]
    on_disk(tmp_path / "u", {"deep/c.png": IMAGE})
    refused("deep/c.png: images right in", verification_protocol.list_probes, tmp_path / "u")
    refused("no such folder", verification_protocol.list_probes, tmp_path / "none")


# tables


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
def test_the_truth_is_a_label_an_image(tmp_path, text):
    found = verification_protocol.read_truth(written(tmp_path, text), NAMES, FILES)
    np.testing.assert_array_equal(found, [1, -1, 0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label\nbob\neve\nann\n", "row 3: label 'eve' is neither"),
        ("bob\nann\n", "row 2: found 2 rows, wanted 3"),
        ("", "row 0: found 0 rows, wanted 3"),
        ("0,bob\n2,ann\n1,ann\n", "row 2: found 2, wanted 1 or 01.png .2 such"),
        ("00.png,bob\n02.png,ann\n01.png,ann\n", "row 2: found 02.png, wanted 1 or 01.png"),
        ("a,b,bob\n", "row 1: 3 columns"),
        ("index,label\n0,bob\nann\n2,ann\n", "row 3: 1 columns"),
        ("label\n" + "b\0b\n" * 3, "row 2: label 'b.x00b'|no table"),
    ],
)
def test_truth_that_is_not_that_of_the_images_is_refused(tmp_path, text, said):
    refused(said, verification_protocol.read_truth, written(tmp_path, text), NAMES, FILES)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    refused("t.csv: no table", verification_protocol.read_table, tmp_path / "t.csv")
    refused(
        "none.csv: cannot be read: No such file",
        verification_protocol.read_table,
        tmp_path / "none.csv",
    )


def test_numbers_may_be_those_of_the_names(tmp_path):
    files = [Path(name) for name in ("0.png", "1.png", "10.png", "2.png")]
    table = verification_protocol.read_table(written(tmp_path, "0,ann\n1,ann\n10,ann\n2,bob\n"))
    assert not verification_protocol.mismatches(table, files)


def test_each_row_that_does_not_match_is_a_line(tmp_path):
    table = verification_protocol.read_table(written(tmp_path, "index,label\n0,a\n2,a\n1,a\n3,a\n"))
    assert verification_protocol.mismatches(table, FILES) == [
        "row 3: found 2, wanted 1 or 01.png",
        "row 4: found 1, wanted 2 or 02.png",
        "row 5: found 4 rows, wanted 3, one an image",
    ]


def test_a_submission_is_as_its_sample(tmp_path):
    assert verification_protocol.submission_csv(["a", "b"]) == "index,label\n0,a\n1,b\n"
    files = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    assert (
        verification_protocol.submission_csv([7, 0], files=files) == "id,label\nx.jpg,7\ny.jpg,0\n"
    )
    for heading in ("Id,Label\n", "", "label,id\n"):
        rows = "x,7\ny,8\n" if heading.startswith("label") else "7,x\n8,y\n"
        sample = verification_protocol.read_table(written(tmp_path, heading + rows))
        wanted = heading + rows.replace("x", "a").replace("y", "b")
        assert verification_protocol.submission_csv(["a", "b"], sample) == wanted


@given(
    st.lists(st.sampled_from([*NAMES, verification_protocol.UNKNOWN_LABEL]), min_size=1, max_size=9)
)
def test_a_submission_is_read_back(tmp_path_factory, labels):
    path = written(tmp_path_factory.mktemp("t"), verification_protocol.submission_csv(labels))
    files = [Path(f"{i}.png") for i in range(len(labels))]
    found = verification_protocol.read_truth(path, NAMES, files)
    assert [(*NAMES, verification_protocol.UNKNOWN_LABEL)[i] for i in found] == labels


# pairs


@pytest.fixture
def faces(tmp_path):
    names = ["x/ann/ann_0001.png", "x/ann/ann_0002.jpg", "y/bob_b/bob_b_0012.png", "ann_0001.png"]
    on_disk(tmp_path / "lfw", dict.fromkeys(names, IMAGE))
    return tmp_path / "lfw"


def listed(faces, text):
    path = faces.parent / "pairs.txt"
    path.write_text(text)
    return verification_protocol.read_pairs(path, faces)


def test_pairs_are_of_one_person_or_of_two(faces):
    found = listed(faces, "1\t1\nann\t1\t2\nann\t2\tbob_b\t12\n")
    first, second, other = (
        faces / name
        for name in ("x/ann/ann_0001.png", "x/ann/ann_0002.jpg", "y/bob_b/bob_b_0012.png")
    )
    assert found == (1, [(first, second, True, 0), (second, other, False, 1)], ())
    assert listed(faces, "1\nann 1 2\nann 2 bob_b 12\n").folds is None


def test_images_that_are_missing_are_named(faces):
    found = listed(faces, "2 1\nann 1 2\nann 3 eve 12\nann 1 2\nann 1 eve 7\n")
    assert [(pair.same, pair.place) for pair in found.pairs] == [(True, 0), (True, 2)]
    assert found.missing == (
        f"{faces.parent / 'pairs.txt'} row 3: no image ann/ann_0003 below {faces}",
        f"{faces.parent / 'pairs.txt'} row 5: no image eve/eve_0007 below {faces}",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "row 1: numbers of folds"),
        ("ann 1 2\n", "row 1: numbers of folds"),
        ("1 1\nann 1 2\n", "1 pairs; its first line says 2"),
        ("1 1\nann 1 2\nann 1\n", "row 3: 'ann 1'; NAME 1 2"),
        ("1 1\nann 1 2\nann one ann 2\n", "row 3: 'ann one ann 2'"),
    ],
)
def test_what_are_no_pairs_is_refused(faces, text, said):
    refused(said, listed, faces, text)


def test_two_files_of_one_name_are_refused(faces):
    on_disk(faces, {"z/ann/ann_0001.bmp": IMAGE})
    refused("row 2: .*ann_0001.* or .*ann_0001", listed, faces, "1 1\nann 1 2\nann 1 2\n")
