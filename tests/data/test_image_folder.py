import contextlib
import gzip
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet.data import image_folder
from jaxdet.data.sources import UnreadableError
from jaxdet.errors import InputError
from tests.datasets import (
    below,
    encode_image,
    encode_tar,
    write_tar,
    write_tar_gz,
    write_tree,
)

once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


A, B, C = map(encode_image, (50, 100, 150))
TREE = {"dog/1.png": A, "cat/b.png": B, "cat/a.png": C}


@pytest.fixture(params=[write_tree, write_tar, write_tar_gz])
def put(request, tmp_path):
    """A function that writes files into a folder or tar file and returns its path."""
    return lambda files: request.param(tmp_path / "data", files)


def names(found):
    return {split: [one.name for one in own] for split, own in found.splits.items()}


@pytest.mark.parametrize("around", [".", "any", "cat"])
def test_folders_are_classes_in_alphabetical_order(put, around):
    found = image_folder.read(put(below(around, TREE)))
    assert found.classes == ("cat", "dog") and found.notes == ()
    assert names(found) == {"all": ["cat/a.png", "cat/b.png", "dog/1.png"]}
    source, notes = image_folder.load(found.splits["all"], found.classes, 8)
    assert notes == [] and source.names == names(found)["all"]
    np.testing.assert_array_equal(source.arrays["label"], [0, 0, 1])
    np.testing.assert_array_equal(source.arrays["id"], [0, 1, 2])
    kinds = {name: (array.shape, str(array.dtype)) for name, array in source.arrays.items()}
    assert kinds == {
        "image": ((3, 8, 8, 3), "uint8"),
        "label": ((3,), "int32"),
        "id": ((3,), "int32"),
    }


def test_classes_sort_as_text():
    tree = image_folder.FileTree(
        Path("x"), {(): {}} | {(f"s{i}",): {"1.pgm": Path()} for i in range(12)}, ()
    )
    assert image_folder.find_classes(tree).classes[:4] == ("s0", "s1", "s10", "s11")


@pytest.mark.parametrize("around", [".", "any"])
def test_splits_are_given_by_folders(put, around):
    files = below("test", {"cat/a.png": A}) | below("training", TREE) | below("valid2", TREE)
    found = image_folder.read(put(below(around, files)))
    whole = ["cat/a.png", "cat/b.png", "dog/1.png"]
    assert names(found) == {"test": ["cat/a.png"], "train": whole, "val": whole}
    assert found.classes == ("cat", "dog") and found.notes == ()


def test_images_directly_in_a_test_folder_are_ignored(put):
    files = (
        below("train", TREE) | below("dev", TREE) | {"test/1.png": A, "test/2.png": b"not an image"}
    )
    found = image_folder.read(put(files))
    assert sorted(found.splits) == ["train", "val"] and found.notes == ()


def test_a_single_split_is_not_taken_for_a_folder_around_all(put):
    assert names(image_folder.read(put(below("test", {"cat/a.png": A})))) == {"test": ["cat/a.png"]}


@pytest.mark.parametrize(("around", "split"), [(".", "all"), ("train", "train")])
def test_classes_may_be_named_like_splits(put, around, split):
    found = image_folder.read(put(below(around, {"train/a.png": A, "plane/a.png": B})))
    assert found.classes == ("plane", "train") and list(found.splits) == [split]


def test_hidden_files_and_files_beside_classes_are_ignored(put):
    others = {".git/x/a.png": A, "cat/.a.png": A, "._cat/a.png": A, "README": b"text"}
    found = image_folder.read(put({**TREE, **others}))
    assert names(found) == {"all": ["cat/a.png", "cat/b.png", "dog/1.png"]} and found.notes == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({**TREE, "fox": None}, ["data/fox: no files in it"]),
        (
            {**TREE, "cat/old/a.png": A},
            ["data/cat/old: left out: a folder inside the folder of a class"],
        ),
        (
            below("train", TREE) | {"docs/a.png": A, "val/b.png": B, "test": None},
            [
                f"data/{name}: left out: must be one of train, val, test"
                for name in ("docs", "test", "val")
            ],
        ),
    ],
)
def test_folders_that_are_not_classes_are_noted(put, files, expected):
    found = image_folder.read(put(files))
    assert found.classes == ("cat", "dog")
    assert len(found.notes) == len(expected)
    for note, text in zip(found.notes, expected, strict=True):
        assert text in note and "\n" not in note


@pytest.mark.parametrize("files", [{}, {"README": b""}, {"cat": None}, {"a/b/c/d/e/f.png": A}])
def test_data_without_classes_are_refused(put, files):
    with pytest.raises(
        InputError, match="data: no class folder contains files; expected CLASS/FILE"
    ):
        image_folder.read(put(files))


# Images

FORMATS = {
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "PPM": {},
    "gray PNG": {"mode": "L"},
    "PGM": {"mode": "L", "kind": "PPM"},
    "black and white": {"mode": "1", "kind": "PPM"},
    "palette": {"mode": "P", "kind": "PNG"},
    "transparent": {"mode": "RGBA", "kind": "PNG"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_images_of_every_format_get_three_channels(put, name):
    content = encode_image(200, (8, 8), **{"kind": name.split()[-1], **FORMATS[name]})
    found = image_folder.read(put({"cat/a": content}))
    source, notes = image_folder.load(found.splits["all"], ["cat"], 8)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert notes == []
    np.testing.assert_array_equal(source.arrays["image"], expected[None])
    if FORMATS[name].get("mode") in ("L", "1"):
        assert (source.arrays["image"] == source.arrays["image"][..., :1]).all()


def test_images_are_upright_and_stretched_to_a_square(put):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    found = image_folder.read(put({"cat/a.png": encode_image(200, (6, 8), exif=exif)}))
    source, _ = image_folder.load(found.splits["all"], ["cat"], 5)
    upright = Image.open(io.BytesIO(encode_image(200, (6, 8)))).transpose(
        Image.Transpose.ROTATE_270
    )
    expected = upright.resize((5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(source.arrays["image"][0], np.asarray(expected))


def test_a_file_that_is_not_an_image_is_noted_and_left_out(put):
    bad = {"cat/b.png": B[:60], "dog/0.txt": b"not an image", "dog/2.jpg": b""}
    place = put({**TREE, **bad})
    found = image_folder.read(place)
    source, notes = image_folder.load(found.splits["all"], found.classes, 8, first_id=7)
    for note, name in zip(notes, bad, strict=True):
        expected = rf"{place}/{name}: (\d+ bytes: )?not a readable image \(.+\)"
        assert re.fullmatch(expected, note), note
    assert source.names == ["cat/a.png", "dog/1.png"]
    np.testing.assert_array_equal(source.arrays["id"], [7, 10])
    np.testing.assert_array_equal(source.arrays["label"], [0, 1])
    whole, _ = image_folder.load([found.splits["all"][i] for i in (0, 3)], found.classes, 8)
    np.testing.assert_array_equal(source.arrays["image"], whole.arrays["image"])


def test_load_without_a_usable_image_or_with_an_unknown_class_is_refused(put):
    rows = image_folder.read(put({"cat/a.png": b"a", "cat/b.png": b"b"})).splits["all"]
    with pytest.raises(
        InputError, match=r"none of 2 images can be used; first problem: .*data/cat/a.png: "
    ):
        image_folder.load(rows, ["cat"], 8)
    with pytest.raises(InputError, match="none of 0 images can be used$"):
        image_folder.load([], ["cat"], 8)
    with pytest.raises(InputError, match="data/cat/a.png: class 'cat' must be one of dog, fox"):
        image_folder.load(rows, ["dog", "fox"], 8)


@settings(once, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), min_size=1, unique=True))
def test_folders_and_tar_files_give_the_same(tmp_path_factory, drawn_files):
    files = {f"{name}/{level}.png": encode_image(level) for name, level in drawn_files}
    every = []
    for form in (write_tree, write_tar, write_tar_gz):
        found = image_folder.read(form(tmp_path_factory.mktemp("form") / "data", files))
        source, _ = image_folder.load(found.splits["all"], found.classes, 8)
        every.append((found.classes, source.names, source.arrays["image"].tobytes()))
    assert every[0] == every[1] == every[2]
    assert every[0][1] == sorted(files)


# Hostile names


def test_unprintable_names_are_escaped(put):
    found = image_folder.read(put({"cat/a\nb.png": b"", "cat/ok.png": A, "c\td": None}))
    _, notes = image_folder.load(found.splits["all"], found.classes, 8)
    (note,), (empty,) = notes, found.notes
    assert r"data/cat/a\nb.png" in note and "\n" not in note
    assert r"data/c\td" in empty and "\t" not in empty


def member(name, kind=tarfile.REGTYPE, to=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, to
    return found


@pytest.mark.parametrize("name", ["../x.png", "cat/../../x.png", "/tmp/cat/x.png", "/x.png"])
def test_a_name_that_leads_out_of_a_tar_file_is_noted_and_left_out(tmp_path, name):
    path = tmp_path / "data.tar"
    path.write_bytes(encode_tar(TREE, [member(name)]))
    found = image_folder.read(path)
    assert found.notes == (f"{path}: {name!r} leads out of the archive, left out",)
    assert names(found) == {"all": ["cat/a.png", "cat/b.png", "dog/1.png"]}
    assert os.listdir(tmp_path) == ["data.tar"]


def test_links_and_devices_in_a_tar_file_are_ignored(tmp_path):
    path, secret = tmp_path / "data.tar", tmp_path / "secret.png"
    secret.write_bytes(A)
    links = [
        member("cat/soft.png", tarfile.SYMTYPE, str(secret)),
        member("cat/hard.png", tarfile.LNKTYPE, "cat/a.png"),
        member("fox", tarfile.SYMTYPE, str(tmp_path)),
        member("cat/pipe.png", tarfile.FIFOTYPE),
        member("cat/null.png", tarfile.CHRTYPE),
    ]
    path.write_bytes(encode_tar(TREE, links))
    found = image_folder.read(path)
    assert names(found) == {"all": ["cat/a.png", "cat/b.png", "dog/1.png"]} and found.notes == ()


def test_the_last_file_of_one_name_in_a_tar_file_counts(tmp_path):
    path = tmp_path / "data.tar"
    unended = encode_tar({"cat/a.png": A})[: 512 + -(-len(A) // 512) * 512]
    path.write_bytes(unended + encode_tar({"cat/a.png": C, "cat/a.png/b": B}))
    (image,) = image_folder.list_files(path).files["cat",].values()
    assert image_folder.file_bytes(image) == C


def test_links_on_disk_are_followed_and_pipes_are_ignored(tmp_path):
    place = write_tree(tmp_path / "data", TREE)
    (place / "fox").symlink_to(place / "dog")  # a class on another disk
    (place / "cat" / "gone.png").symlink_to(place / "nothing")
    os.mkfifo(place / "cat" / "pipe.png")
    (place / "dog" / "round").symlink_to(place)
    found = image_folder.read(place)
    assert names(found) == {"all": ["cat/a.png", "cat/b.png", "dog/1.png", "fox/1.png"]}
    notes = [f"{place}/{name}/round: {image_folder.NESTED_FOLDER}" for name in ("dog", "fox")]
    assert list(found.notes) == notes


# Damage

PLAIN = encode_tar({"cat/a.png": A, "dog/b.png": B})
END = PLAIN.rindex(B[-8:]) // 512 * 512 + 512  # where the end-of-archive marks begin


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_file_truncated_anywhere_is_refused(tmp_path, pack):
    path, whole = tmp_path / "data.tar", pack(PLAIN)
    path.write_bytes(whole)
    assert names(image_folder.read(path)) == {"all": ["cat/a.png", "dog/b.png"]}
    stop = END + 512 if pack is bytes else len(whole)
    for length in sorted({*range(0, stop, 37), *range(0, stop, 512), stop - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"is cut short or damaged|not a tar file") as raised:
            image_folder.read(path)
        assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_damaged_name_is_not_taken_for_the_end_of_a_tar_file(tmp_path):
    path = tmp_path / "data.tar"
    path.write_bytes(PLAIN.replace(b"dog/b.png", b"dog/c.png"))
    with pytest.raises(InputError, match="no end-of-archive mark at byte"):
        image_folder.read(path)


@once
@given(st.integers(0, END - 1), st.binary(min_size=1, max_size=6))
def test_damaged_bytes_give_images_or_an_input_error(tmp_path, at, new):
    path = tmp_path / "damaged.tar"
    path.write_bytes(PLAIN[:at] + new + PLAIN[at + len(new) :])
    with contextlib.suppress(InputError):
        found = image_folder.read(path)
        source, notes = image_folder.load(found.splits.popitem()[1], found.classes, 8)
        assert len(source) + len(notes) >= 1


def test_a_missing_path_or_one_that_is_not_a_tar_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(A)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"text"))
    for name in ("a.png", "text.gz"):
        with pytest.raises(
            InputError, match=f"{name}: not a tar file; expected a folder, or a .tar"
        ):
            image_folder.read(tmp_path / name)
    with pytest.raises(InputError, match=f"{tmp_path}/gone: cannot be read: No such file"):
        image_folder.read(tmp_path / "gone")


# Real images


@pytest.mark.skipif("JAXDET_DATA" not in os.environ, reason="JAXDET_DATA is not set")
def test_orl_faces_are_complete():
    found = image_folder.read(Path(os.environ["JAXDET_DATA"]) / "orl-faces")
    assert found.classes[:3] == ("s1", "s10", "s11") and len(found.classes) == 40
    assert found.notes == () and len(found.splits["all"]) == 400
    source, notes = image_folder.load(found.splits["all"][:20], found.classes, 64)
    assert notes == [] and source.arrays["image"].shape == (20, 64, 64, 3)
    np.testing.assert_array_equal(source.arrays["label"], [0] * 10 + [1] * 10)


def test_the_summary_has_counts_sizes_and_notes(put):
    wide = encode_image(size=(3, 40))
    files = {"train/dog/1.png": A, "train/dog/2.png": wide, "test/cat/3.png": B}
    place = put(files | {"test/cat/4.png": b"not an image", "train/dog/inner/5.png": C})
    rows, notes = image_folder.summarize(image_folder.read(place))
    cat = {"label": "cat", "train": 0, "test": 1, "unusable": 1}
    dog = {"label": "dog", "train": 2, "test": 0, "unusable": 0}
    assert rows == [
        cat | {"height": "6 to 6", "width": "8 to 8"},
        dog | {"height": "3 to 6", "width": "8 to 40"},
    ]
    inner, bad = notes
    assert inner == f"{place}/train/dog/inner: {image_folder.NESTED_FOLDER}"
    assert bad.startswith(f"{place}/test/cat/4.png: ") and "not a readable image" in bad


# Streams


def same(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name])
        assert column.dtype == other[name].dtype


def test_a_stream_equals_the_data_in_memory(put):
    pytest.importorskip("grain")
    place = put(TREE | {"cat/c.png": b"not an image"})
    found = image_folder.read(place)
    held, notes = image_folder.load(found.splits["all"], found.classes, 5, first_id=7)
    streamed, stream_notes = image_folder.stream(found.splits["all"], found.classes, 5, first_id=7)
    assert stream_notes == notes and "cat/c.png" in notes[0]
    assert (len(streamed), streamed.names, streamed.arrays) == (3, held.names, {})
    same(streamed.first(99).arrays, held.arrays)
    same(streamed.take([2, 0]).arrays, held.take([2, 0]).arrays)
    np.testing.assert_array_equal(streamed.labels, held.arrays["label"])
    index = np.array([[2, 0], [1, 2]])
    batches = list(streamed.batches(index))
    assert len(batches) == 2
    for row, batch in zip(index, batches, strict=True):
        same(batch, held[row])


def test_a_damaged_image_of_a_stream_is_an_error_or_replaced_by_one_of_its_class(put, caplog):
    pytest.importorskip("grain")
    found = image_folder.read(put(TREE | {"cat/c.png": A[: len(A) // 2]}))
    samples, classes = found.splits["all"], found.classes
    strict, notes = image_folder.stream(samples, classes, 5, on_invalid="error")
    assert not notes and len(strict) == 4
    with pytest.raises(UnreadableError, match=r"cat/c\.png: .*not a readable image") as e:
        list(strict.batches(np.arange(4)[None]))
    assert "\n" not in str(e.value)
    streamed, _ = image_folder.stream(samples, classes, 5)
    (batch,) = streamed.batches(np.arange(4)[None])
    np.testing.assert_array_equal(batch["label"], streamed.labels)
    (damaged,) = np.flatnonzero(batch["id"] != np.arange(4))
    assert streamed.names[damaged] == "cat/c.png" and "cat/c.png" in caplog.text
    with pytest.raises(InputError, match="none of 1 images can be used"):
        image_folder.stream([found.splits["all"][0]._replace(image=Path("gone"))], found.classes, 5)
